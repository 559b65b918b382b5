"""The files in schemas/ are those that the models give, and stand for everything that is printed."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from typer.main import get_command

import bundlectl.actions
from bundlectl.cli.program import program
from bundlectl.model.types import Strict
from tests.schemas.generator import ROOT, generate

FILES = sorted((ROOT / "schemas").rglob("*.schema.json"))
WITHOUT_RESULT = {"dev", "serve", "worker"}
"""Verbs that run until they are stopped."""


def test_the_schemas_are_those_of_the_models() -> None:
    assert generate.differences() == [], "run: python schemas/generate.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT / "schemas").as_posix())
def test_each_schema_is_valid_and_says_what_it_is(file: Path) -> None:
    schema = json.loads(file.read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == generate.DIALECT
    assert schema["$id"].startswith("urn:bundlectl:schema:v1:")
    assert schema["title"] and len(schema["description"]) > 20
    assert file.read_bytes().endswith(b"}\n")
    assert closed(schema) == []


def closed(schema: Any, path: str = "$") -> list[str]:
    """Give the objects with named fields that let unknown ones through."""
    if isinstance(schema, list):
        return [hole for n, child in enumerate(schema) for hole in closed(child, f"{path}[{n}]")]
    if not isinstance(schema, dict):
        return []
    holes = [hole for key, child in schema.items() for hole in closed(child, f"{path}.{key}")]
    if schema.get("type") == "object" and "properties" in schema and "additionalProperties" not in schema:
        holes.append(path)
    return [hole for hole in holes if hole != "$.properties.details"]  # of an error: depends on the error


def test_identities_differ() -> None:
    found = [schema["$id"] for schema in generate.schemas().values()]
    assert len(found) == len(set(found))


def test_every_model_of_an_action_is_in_a_schema() -> None:
    types = [format_.type for format_ in (*generate.FORMATS.values(), *generate.OUTPUTS.values())]
    reached: set[type] = set()
    for type_ in types:
        _reach(type_, reached)
    missing = []
    for found in pkgutil.iter_modules(bundlectl.actions.__path__, "bundlectl.actions."):
        for value in vars(importlib.import_module(found.name)).values():
            ours = isinstance(value, type) and issubclass(value, Strict) and value.__module__ == found.name
            if ours and value not in reached:
                missing.append(f"{found.name}.{value.__name__}")
    assert missing == [], "add the verb to OUTPUTS in schemas/generate.py"


def _reach(type_: Any, reached: set[type]) -> None:
    for argument in getattr(type_, "__args__", ()):
        _reach(argument, reached)
    if isinstance(type_, type) and issubclass(type_, Strict) and type_ not in reached:
        reached.add(type_)
        for field in type_.model_fields.values():
            _reach(field.annotation, reached)


def test_every_command_has_a_schema() -> None:
    verbs = {"-".join(path) for path in commands(get_command(program()), ())}
    assert verbs - WITHOUT_RESULT == set(generate.OUTPUTS), "the table is OUTPUTS in schemas/generate.py"


def commands(command: Any, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    children = getattr(command, "commands", None)
    if children is None:
        return [path]
    return [found for name, child in children.items() for found in commands(child, (*path, name))]


def test_check_names_what_is_not_in_step(tmp_path: Path) -> None:
    generate.write(tmp_path)
    assert generate.differences(tmp_path) == []
    (tmp_path / "head.schema.json").unlink()
    (tmp_path / "output" / "ask.schema.json").write_text("{}\n")
    (tmp_path / "old.schema.json").write_text("{}\n")
    assert generate.differences(tmp_path) == [
        "head.schema.json: missing",
        "old.schema.json: stale, nothing stands for it",
        "output/ask.schema.json: differs from the models",
    ]
    assert sorted(generate.write(tmp_path)) == ["head.schema.json", "old.schema.json", "output/ask.schema.json"]
    assert generate.differences(tmp_path) == []
    assert not (tmp_path / "old.schema.json").exists()


def test_the_script_exits_0_when_in_step_and_2_on_nonsense() -> None:
    script = str(ROOT / "schemas" / "generate.py")
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert subprocess.run([sys.executable, script, "--chekc"], capture_output=True).returncode == 2
