"""Every example file of the repository, and one of each stored document, as (schema, where, value)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from bundlectl.bundling.scaffold import write_scaffold
from bundlectl.model.attestation import APPROVAL, EVALUATION
from bundlectl.trust.envelope import open_statement, parse_envelope, payload_of
from tests.schemas.generator import ROOT
from tests.support.world import World

Example = tuple[str, str, Any]


def written() -> Iterator[Example]:
    """What people write: the examples, the tests' sources, and a scaffold."""
    for file in ROOT.glob("bundles/**/*.yaml"):
        yield from read(file, file.relative_to(ROOT).as_posix())
    for file in [*ROOT.glob("evals/*"), *ROOT.glob("tests/bundling/fixtures/*/**/*.yaml")]:
        yield from read(file, file.relative_to(ROOT).as_posix())
    with tempfile.TemporaryDirectory() as folder:
        for file in write_scaffold(Path(folder), "hello"):
            yield from read(file, f"scaffold/{file.relative_to(folder)}")


def read(file: Path, where: str) -> Iterator[Example]:
    if file.suffix == ".jsonl":
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            yield "case", f"{where}:{number}", json.loads(line)
    elif file.suffix == ".yaml":
        yield schema_for(file), where, yaml.safe_load(file.read_text(encoding="utf-8"))


def schema_for(file: Path) -> str:
    if file.name == "bundle.yaml":
        return "bundle"
    folders = {
        "access": "access-cases",
        "environments": "bindings",
        "evals": "suite",
        "indexes": "index-source",
        "prompts": "prompt",
    }
    return folders[file.parent.name]


def stored() -> Iterator[Example]:
    """What is signed and stored, made by the real rooms."""
    world = World()
    first, second = world.bundle("v1"), world.bundle("v2")
    for bundle in (first, second):
        world.promote("prod", bundle)
    world.rollback("prod", 1)
    world.renew("prod")
    for entry in world.registry.releases.history("support", "prod"):
        head = json.loads(entry.data)
        yield "head", f"release {entry.release.serial}", head
        yield "release", f"release {entry.release.serial}", entry.release.form()
        yield "envelope", f"release {entry.release.serial}", head["release"]
    yield "manifest", "bundle", json.loads(first.manifest_bytes)
    keyring = world.registry.keyring_bytes(1)
    assert keyring is not None
    yield "keyring", "keyring 1", json.loads(payload_of(parse_envelope(keyring, "keyring")))
    yield "policy", "policy 1", json.loads(payload_of(world.policy))
    names = {APPROVAL: "approval", EVALUATION: "evaluation-result"}
    for envelope in world.evidence(first):
        statement = open_statement(envelope)
        yield "statement", statement.predicateType, json.loads(payload_of(envelope))
        if statement.predicateType in names:
            yield names[statement.predicateType], "evidence", statement.predicate
