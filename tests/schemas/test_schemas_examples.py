"""Every example validates by its schema; and whatever a model takes, its schema takes."""

from __future__ import annotations

import copy
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import TypeAdapter, ValidationError

from bundlectl.actions.validate import validate
from bundlectl.model import errors
from bundlectl.model.errors import BundlectlError, MissingExtra, Problem, SourceError
from bundlectl.model.verdict import Verdict
from tests.schemas.examples import Example, stored, written
from tests.schemas.generator import ROOT, generate
from tests.support.answering import contract, setting

WRITTEN = list(written())
STORED = list(stored())
EXAMPLES = WRITTEN + STORED


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((ROOT / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")))


def problems(name: str, value: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(value)]


def by_model(name: str, value: Any) -> bool:
    try:
        TypeAdapter(generate.FORMATS[name].type).validate_python(value, by_alias=True, by_name=False)
    except ValidationError:
        return False
    return True


def test_every_example_validates() -> None:
    found = {f"{where} by {name}": problems(name, value) for name, where, value in EXAMPLES}
    assert {where: said for where, said in found.items() if said} == {}
    seen = {name for name, _, _ in EXAMPLES}
    assert {"bundle", "prompt", "bindings", "access-cases", "suite", "case", "index-source", "keyring"} <= seen


def test_every_example_of_a_source_is_named() -> None:
    """A file that the examples do not reach would be checked by nobody."""
    names = {where.partition(":")[0] for _, where, _ in WRITTEN}
    for folder in ("bundles", "evals"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in (".yaml", ".jsonl"):
                assert file.relative_to(ROOT).as_posix() in names


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in children for found in paths(child, (*path, key)))]


_NUMBERS = [True, 0, 1, -1, 10**17, 0.5]
_TEXTS = ["", "x", "X y", "following", "text", "structured_json", "extractive", "sha256:0", "8s", "08s"]
_PATHS = ["../x", "a/b", "a//b", "a/./b", "..b"]
_TIMES = ["2026-11-23T18:00:00Z", "2026-11-23"]
ODD = st.sampled_from([None, *_NUMBERS, *_TEXTS, *_PATHS, *_TIMES, [], ["x"], {}, {"x": 1}])


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_what_a_model_takes_its_schema_takes(data: st.DataObject) -> None:
    name, _, original = data.draw(st.sampled_from(DISTINCT))
    value = json.loads(json.dumps(original))
    for _ in range(data.draw(st.integers(1, 2))):
        value = bent(data, value)
    if by_model(name, value):
        assert problems(name, value) == []


def bent(data: st.DataObject, value: Any) -> Any:
    """Change one place: another value, a field less, a field more."""
    path = data.draw(st.sampled_from(paths(value)))
    if not path:
        return value
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    change = data.draw(st.sampled_from(["put", "drop", "add"]))
    if change == "put":
        parent[path[-1]] = copy.deepcopy(data.draw(ODD))
    elif change == "drop":
        del parent[path[-1]]
    elif isinstance(parent, dict):
        parent[data.draw(st.sampled_from(["surplus", "over", "when", "name", "schema_"]))] = copy.deepcopy(
            data.draw(ODD)
        )
    return value


def _distinct() -> list[Example]:
    """A few of each kind: a dataset's lines are much alike."""
    kept: dict[str, list[Example]] = {}
    for example in EXAMPLES:
        kept.setdefault(example[0], []).append(example)
    return [example for examples in kept.values() for example in examples[:4]]


DISTINCT = _distinct()


@pytest.mark.parametrize("example", DISTINCT, ids=lambda e: f"{e[0]}, {e[1]}")
def test_unknown_fields_are_refused_at_the_top(example: Example) -> None:
    name, _, value = example
    assert problems(name, {**value, "surplus field": 1})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("bundle", {"models": {"own": {"provider": "openai"}}}),
        ("bundle", {"routes": {"fast": {"model": "plain", "timeout": "8 s"}, "select": [{"use": "fast"}]}}),
        ("bundle", {"routes": {"Fast One": {"model": "plain"}, "select": [{"use": "fast"}]}}),
        ("bundle", {"routes": {"fast": {"model": "plain"}}}),
        ("bundle", {"guardrails": {"p": {"input": {"detectors": [{"action": "block"}]}}}}),
        ("bundle", {"access": {"policies": ["../other/rules.cedar"]}}),
        ("bundle", {"apiVersion": "bundlectl/v2"}),
        ("bindings", {"disabled_models": "own"}),
        ("bindings", {"models": {"own": {"credential": "sk-123"}}}),
        ("suite", {"dataset": "/data.jsonl"}),
    ],
)
def test_what_an_editor_should_underline(name: str, change: dict[str, Any]) -> None:
    value = {**next(value for found, _, value in WRITTEN if found == name), **change}
    assert not by_model(name, value)
    assert problems(name, value)


async def test_answers_requests_and_receipts() -> None:
    async with setting() as made:
        for request in (contract(tenant_id="quotes-only"), contract(user_role="visitor"), contract()):
            outcome = await made.router.handle(request, generate_identity())
            assert problems("request", request.form()) == []
            assert problems("receipt", outcome.receipt.form()) == []
            if outcome.answer is not None:
                assert problems("answer", outcome.answer.form()) == []
                asked = {"question": "?", "answer": outcome.answer.form(), "receipt": outcome.receipt.form()}
                assert problems("output/ask", asked) == []


def generate_identity() -> Any:
    from bundlectl.router.identity import LOCAL

    return LOCAL


def test_an_output_leaves_out_what_is_absent_and_never_says_null() -> None:
    form = validate(ROOT / "tests" / "bundling" / "fixtures" / "full").form()
    assert problems("output/validate", form) == []
    del form["version"]
    assert problems("output/validate", form)
    schema = json.dumps(generate.schemas()["output/promote.schema.json"])
    assert '"null"' not in schema


def _classes(base: type[BundlectlError]) -> list[type[BundlectlError]]:
    return [base, *(found for child in base.__subclasses__() for found in _classes(child))]


def test_errors() -> None:
    made: list[BundlectlError] = [
        SourceError([Problem("bundle.yaml", 3, "wrong", "right", column=4), Problem("x", 0, "missing")]),
        MissingExtra("x", "rag"),
        *(kind("what", why="why", fix="fix", details={"key": 1}) for kind in _plain()),
    ]
    for error in made:
        assert problems("output/error", error.to_dict()) == []
    assert problems("output/error", {"error": "defect", "message": "ValueError: x", "exit_code": 1}) == []
    assert problems("output/error", made[0].to_dict() | {"exit_code": 0})


def _plain() -> list[type[BundlectlError]]:
    """The classes that are called like the base."""
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, BundlectlError)]
    return [kind for kind in own if "__init__" not in vars(kind) or kind is BundlectlError]


def test_the_exit_codes_of_all_errors_are_in_range() -> None:
    assert {kind.exit_code for kind in _classes(BundlectlError)} <= set(range(1, 8))


def test_verdicts_are_named() -> None:
    plan = generate.schemas()["plan.schema.json"]
    assert set(Verdict.__args__) == set(plan["properties"]["verdict"]["enum"])


_COMMENT = re.compile(r"yaml-language-server: \$schema=(\S+)")


def test_schema_comments_name_files_that_are_there() -> None:
    from bundlectl.bundling.scaffold import scaffold_files

    pointed = 0
    for file in (ROOT / "bundles").rglob("*.yaml"):
        for named in _COMMENT.findall(file.read_text(encoding="utf-8")):
            assert (file.parent / named).resolve().is_file(), f"{file.relative_to(ROOT)} points at {named}"
            pointed += 1
    assert pointed
    for path, text in scaffold_files("hello"):
        for named in _COMMENT.findall(text):
            # An app of one's own has no schemas/ beside it, unless the scaffold brings one.
            assert str(Path(path).parent / named) in dict(scaffold_files("hello")), f"{path} points at {named}"
