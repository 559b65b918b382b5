"""A process that only resolves a folder loads nothing of the router, and nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bundlectl.storage.directory import DirectoryStore
from tests.support.world import World, tiny_bundle

CODE = """
import asyncio, json, sys
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Resolver
from bundlectl.storage.store import open_store

async def main():
    async def prepare(bundle):
        return bundle.bundle.digest
    resolver = Resolver(Registry(open_store(sys.argv[1])), "support", "prod", sys.argv[2], prepare)
    await resolver.start()
    await resolver.stop()
    print(json.dumps([resolver.current(), sorted(sys.modules)]))

asyncio.run(main())
"""
FORBIDDEN = (
    "bundlectl.router",
    "bundlectl.bundling",
    "bundlectl.cli",
    "bundlectl.actions",
    "bundlectl.stages",
    "bundlectl.inference",
    "bundlectl.retrieval",
)
HEAVY = (
    "boto3",
    "botocore",
    "httptools",
    "lancedb",
    "ragas",
    "starlette",
    "typer",
    "opentelemetry",
    "cedarpy",
    "yaml",
    "sigstore",
)


def test_a_process_that_resolves_a_folder_loads_little(tmp_path: Path) -> None:
    world = World(DirectoryStore(tmp_path / "registry"))
    world.promote("prod", world.bundle("v1"))
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "registry"), world.pin],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    served, modules = json.loads(done.stdout)
    assert served == tiny_bundle("v1").digest
    loaded = [m for m in modules if any(m == name or m.startswith(f"{name}.") for name in (*FORBIDDEN, *HEAVY))]
    assert loaded == []
