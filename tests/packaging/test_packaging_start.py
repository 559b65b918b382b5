"""Starting the command loads what the command needs: ``--help`` none of the heavy libraries, a folder's status few."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bundlectl.cli.program import program
from tests.support.world import World

HEAVY = {
    "boto3",
    "botocore",
    "cedarpy",
    "cryptography",
    "duckdb",
    "git",
    "httptools",
    "jsonschema",
    "jsonschema_rs",
    "lancedb",
    "minijinja",
    "numpy",
    "opentelemetry.sdk",
    "pyarrow",
    "pydantic",
    "pypdf",
    "ragas",
    "re2",
    "sigstore",
    "starlette",
    "uvicorn",
    "wordllama",
    "yaml",
}
NOT_FOR_STATUS = HEAVY - {"cryptography", "pydantic"}
NOT_FOR_RESOLVING = {
    "boto3",
    "lancedb",
    "ragas",
    "sigstore",
    "starlette",
    "typer",
    "rich",
    "opentelemetry.sdk",
    "duckdb",
    "numpy",
}


def loaded(code: str, cwd: Path | None = None) -> set[str]:
    """Give the modules that a fresh interpreter has loaded once the code has run."""
    tail = "\nimport json, sys\nsys.stderr.write('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + tail], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def call(*argv: str) -> str:
    """Write code that calls the command and goes on after it."""
    return (
        f"import sys\nsys.argv = {['bundlectl', *argv]!r}\nfrom bundlectl.cli.program import run\n"
        "try:\n    run()\nexcept SystemExit as end:\n    assert not end.code, end.code"
    )


@pytest.mark.parametrize("argv", [("--help",), ("--version",)])
def test_help_loads_nothing_heavy(argv: tuple[str, ...]) -> None:
    assert loaded(call(*argv)) & HEAVY == set()


@pytest.mark.parametrize("argv", [("promote", "--help"), ("keyring", "--help"), ("ask", "--help")])
def test_help_of_a_command_loads_nothing_heavy(argv: tuple[str, ...]) -> None:
    # typer itself may load pydantic where a command has parameters; our models are not for help.
    found = loaded(call(*argv))
    assert found & (HEAVY - {"pydantic"}) == set()
    assert {name for name in found if name.startswith("bundlectl.model.")} <= {"bundlectl.model.errors"}


def test_importing_the_program_loads_nothing_heavy() -> None:
    assert loaded("import bundlectl.cli.program") & HEAVY == set()


def test_status_loads_only_what_it_verifies_with(tmp_path: Path) -> None:
    from bundlectl.storage.directory import DirectoryStore

    world = World(DirectoryStore(tmp_path / "registry"))
    world.promote("dev", world.bundle())
    said = f"import os\nos.environ['BUNDLECTL_PIN'] = {world.pin!r}\n" + call("status", "--registry", "registry")
    assert loaded(said, tmp_path) & NOT_FOR_STATUS == set()


def test_a_process_that_only_resolves_loads_no_more(tmp_path: Path) -> None:
    from bundlectl.storage.directory import DirectoryStore

    world = World(DirectoryStore(tmp_path / "registry"))
    world.promote("dev", world.bundle())
    code = f"""
import asyncio
from bundlectl.registry.registry import Registry
from bundlectl.resolver.resolver import Resolver
from bundlectl.storage.store import open_store

async def prepare(verified):
    return verified.bundle.digest

async def main():
    resolver = Resolver(Registry(open_store("registry")), "support", "dev", {world.pin!r}, prepare)
    await resolver.start()
    assert resolver.current().startswith("sha256:")
    await resolver.stop()

asyncio.run(main())
"""
    found = loaded(code, tmp_path)
    assert found & NOT_FOR_RESOLVING == set()
    rooms = ("bundlectl.router", "bundlectl.bundling", "bundlectl.cli", "bundlectl.actions", "bundlectl.evaluation")
    assert [name for name in found if name.startswith(rooms)] == []


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", {})
    return [path, *(found for name, child in children.items() for found in commands(child, (*path, name)))]


@pytest.mark.parametrize("path", commands(get_command(program())), ids=lambda path: " ".join(path) or "bundlectl")
def test_every_command_helps(path: tuple[str, ...]) -> None:
    done = CliRunner().invoke(program(*path[:1]), [*path, "--help"])
    assert done.exit_code == 0, done.output
    assert "Usage:" in done.output
    assert done.output.split("Usage:")[1].strip()
