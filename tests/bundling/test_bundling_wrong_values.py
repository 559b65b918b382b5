"""Any value of a source replaced by any other: the source still reads, or every problem has its file and line."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.bundling.source import read_source
from bundlectl.model.errors import SourceError
from tests.bundling.sources import FIXTURES

FILES = [
    "bundle.yaml",
    "prompts/answer.yaml",
    "access/examples.yaml",
    "environments/prod.yaml",
    "output/answer.schema.json",
    "indexes/manual.yaml",
]
Path_ = tuple[str | int, ...]


def nodes(value: Any, path: Path_ = ()) -> list[Path_]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, child in children for inner in nodes(child, (*path, key)))]


PARSED = {file: yaml.safe_load((FIXTURES / "full" / file).read_text("utf-8")) for file in FILES}
PLACES = [(file, path) for file in FILES for path in nodes(PARSED[file])]
VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    10**15,
    0.5,
    "",
    "x",
    "no",
    "A b",
    [],
    ["x"],
    [[]],
    {},
    {"x": 1},
    "{{",
    "../x",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(FIXTURES / "full", tmp_path_factory.mktemp("wrong") / "full"))


@given(st.sampled_from(PLACES), st.sampled_from(VALUES), st.sampled_from(["replace", "add", "remove"]))
@settings(max_examples=120, deadline=None)
def test_any_value_in_any_place(root: Path, at: tuple[str, Path_], value: Any, how: str) -> None:
    file, path = at
    document = {"top": copy.deepcopy(PARSED[file])}
    parent: Any = document
    for part in ("top", *path)[:-1]:
        parent = parent[part]
    last: Any = ("top", *path)[-1]
    if how == "replace":
        parent[last] = value
    elif how == "remove" and path:
        del parent[last]
    elif isinstance(parent[last], dict):
        parent[last]["zzz"] = value
    elif isinstance(parent[last], list):
        parent[last].append(value)
    before = (root / file).read_bytes()
    # Unquoted, so that ambiguous text stands as people write it.
    text = json.dumps(document["top"], indent=1).replace('"no"', "no" if file.endswith(".yaml") else '"no"')
    (root / file).write_text(text)
    try:
        read_source(root)
    except SourceError as error:
        for problem in error.problems:
            assert problem.line >= 1, str(problem)
            assert problem.file.startswith(str(root)), str(problem)
            assert "pydantic" not in str(problem) and "Input should" not in str(problem), str(problem)
    finally:
        (root / file).write_bytes(before)
