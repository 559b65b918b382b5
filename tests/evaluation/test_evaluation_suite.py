"""Suites and datasets: what is read, what is refused, and where the error says it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bundlectl.evaluation.suite import group_of, read_suite, request_of
from bundlectl.model.canonical import canonical, canonical_array, digest
from bundlectl.model.errors import SourceError, UsageError
from bundlectl.model.suite import Case
from tests.evaluation.builders import suite, write_suite

EXACT = [{"name": "exact", "floor": 0.5}]
ONE = {"id": "one", "expected": {"exact": "yes"}}


def problems(path: Path) -> list[str]:
    with pytest.raises(SourceError) as caught:
        read_suite(path)
    return [str(problem).replace(str(path.parent) + "/", "") for problem in caught.value.problems]


def dataset(folder: Path, text: str | bytes) -> list[str]:
    path = write_suite(folder, [ONE], EXACT)
    data = text.encode() if isinstance(text, str) else text
    (folder / "cases.jsonl").write_bytes(data)
    return problems(path)


def line(**fields: Any) -> str:
    made = {"id": "one", "input": {"question": "?"}, "tenant": "t", "role": "r", "expected": {}, **fields}
    return json.dumps({name: value for name, value in made.items() if value is not ...})


BAD_LINES = [
    (line() + "\n" + line(), "cases.jsonl:2: the id 'one' is here a second time (first on line 1)"),
    (line() + "\n\n" + line(id="two", tenant=...), "cases.jsonl:3: "),
    (line(id=...), "cases.jsonl:1: "),
    (line(expected=...), "cases.jsonl:1: "),
    (line(extra=1), "cases.jsonl:1: "),
    (line(id=7), "cases.jsonl:1: "),
    (line(input={}), "cases.jsonl:1: "),
    (line(expected={"refusal": "maybe"}), "cases.jsonl:1: "),
    (line(expected={"regex": "(?=a)"}), "cases.jsonl:1: expected.regex of 'one' does not compile"),
    (line(expected={"contains": ["a", " "]}), "cases.jsonl:1: expected.contains of 'one' holds an empty string"),
    (line(tags=["split:heldout"]), "cases.jsonl:1: a tag of 'one' starts with 'split:'"),
    (line(input={"n": 2**60}), "cases.jsonl:1: 'one' has no canonical form"),
    (line(tenant="no tenant"), "cases.jsonl: case 'one' makes no request: tenant_id"),
    ("[1]", "cases.jsonl:1: "),
    ("{", "cases.jsonl:1: this line is not JSON"),
    ('{"id": NaN}', "cases.jsonl:1: this line is not JSON"),
    ('{"id": "a", "id": "b"}', "cases.jsonl:1: this line is not JSON"),
    (b"\xff\xfe", "cases.jsonl:1: this line is not JSON"),
    ("", "cases.jsonl: the dataset holds no case"),
    ("\n \n", "cases.jsonl: the dataset holds no case"),
]


@pytest.mark.parametrize(("text", "message"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    found = dataset(tmp_path, text)
    assert any(problem.startswith(message) for problem in found), found


def test_every_bad_line_is_named(tmp_path: Path) -> None:
    found = dataset(tmp_path, "\n".join([line(id=f"c{n}", role=...) for n in range(3)]))
    assert [problem.split(": ")[0] for problem in found] == ["cases.jsonl:1", "cases.jsonl:2", "cases.jsonl:3"]


BAD_SUITES: list[tuple[dict[str, Any], str]] = [
    ({"scorers": [{"name": "exat"}]}, "there is no scorer 'exat' (did you mean 'exact'?)"),
    ({"scorers": [{"name": "exact"}, {"name": "exact"}]}, "a second scorer reports as 'exact'"),
    ({"scorers": [{"name": "exact"}, {"name": "regex", "as": "exact"}]}, "a second scorer reports as 'exact'"),
    ({"scorers": [{"name": "latency"}]}, "seconds"),
    ({"scorers": [{"name": "latency", "options": {"seconds": 0}}]}, "seconds"),
    ({"scorers": [{"name": "latency", "options": {"limit": 1}}]}, "limit"),
    ({"scorers": [{"name": "refusal", "options": {"field": "x"}}]}, "field"),
    ({"scorers": [{"name": "json_schema", "options": {"schema": {"type": "objec"}}}]}, "no JSON Schema"),
    (
        {"scorers": [{"name": "json_schema", "options": {"schema": {"$ref": "http://127.0.0.1:9/s"}}}]},
        "no JSON Schema",
    ),
    ({"scorers": [{"name": "exact", "floor": 1.5}]}, "floor"),
    ({"must_pass": ["two"]}, "no case of cases.jsonl has the id 'two'"),
    ({"splits": ["tuning"]}, "no case of cases.jsonl has the split 'tuning'"),
    ({"splits": []}, "the splits choose no case"),
    ({"dataset": "cases.json"}, "the dataset does not exist"),
    ({"dataset": "../cases.jsonl"}, "must stay under its folder"),
]


@pytest.mark.parametrize(("change", "message"), BAD_SUITES)
def test_a_bad_suite_is_refused_with_its_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write_suite(
        tmp_path, [ONE], change.get("scorers", EXACT), **{k: v for k, v in change.items() if k != "scorers"}
    )
    found = problems(path)
    assert any(message in problem for problem in found), found
    if "dataset" not in change:
        assert all(problem.startswith("suite.yaml:") for problem in found), found


def test_a_must_pass_case_outside_of_the_splits_is_refused(tmp_path: Path) -> None:
    cases = [{**ONE, "split": "a"}, {**ONE, "id": "two", "split": "b"}]
    found = problems(write_suite(tmp_path, cases, EXACT, splits=["a"], must_pass=["two"]))
    assert "in none of the splits" in found[0]


def test_the_dataset_is_a_regular_file_under_the_folder(tmp_path: Path) -> None:
    path = write_suite(tmp_path, [ONE], EXACT)
    data = (tmp_path / "cases.jsonl").read_bytes()
    (tmp_path / "cases.jsonl").unlink()
    (tmp_path / "elsewhere").write_bytes(data)
    (tmp_path / "cases.jsonl").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in problems(path)[0]
    (tmp_path / "cases.jsonl").unlink()
    os.mkfifo(tmp_path / "cases.jsonl")
    assert "not a regular file" in problems(path)[0]
    (tmp_path / "cases.jsonl").unlink()
    (tmp_path / "cases.jsonl").mkdir()
    assert "not a regular file" in problems(path)[0]


def test_an_edited_dataset_has_another_digest(tmp_path: Path) -> None:
    before = suite(tmp_path)
    lines = (tmp_path / "cases.jsonl").read_text().splitlines()
    seen = {before.dataset_digest}
    edits = [
        [*lines[:-1]],
        [*lines, lines[0].replace("c0", "c9")],
        [lines[1], lines[0], lines[2]],
        [lines[0].replace("yes", "yess"), *lines[1:]],
    ]
    for edit in edits:
        (tmp_path / "cases.jsonl").write_text("\n".join(edit))
        after = read_suite(tmp_path / "suite.yaml")
        assert after.suite_digest == before.suite_digest
        seen.add(after.dataset_digest)
    assert len(seen) == 5
    # How it is written is not what it says.
    (tmp_path / "cases.jsonl").write_text("\n\n".join(json.dumps(json.loads(ln), sort_keys=True) for ln in lines))
    assert read_suite(tmp_path / "suite.yaml").dataset_digest == before.dataset_digest


def test_an_edited_suite_has_another_digest(tmp_path: Path) -> None:
    before = suite(tmp_path)
    after = suite(tmp_path, scorers=[{"name": "exact", "floor": 0.4}])
    assert before.suite_digest != after.suite_digest and before.dataset_digest == after.dataset_digest


def test_splits_choose_cases_and_the_digest_is_of_all(tmp_path: Path) -> None:
    cases = [{**ONE, "id": f"c{n}", "split": split} for n, split in enumerate(["a", "b", "c", "a"])]
    whole = read_suite(write_suite(tmp_path, cases, EXACT))
    some = read_suite(write_suite(tmp_path, cases, EXACT, splits=["a", "c"]))
    assert [case.id for case in some.cases] == ["c0", "c2", "c3"]
    assert some.dataset_digest == whole.dataset_digest and some.whole


def test_only_narrows_in_the_dataset_s_order(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 5)
    narrow = loaded.only(["c3", "c[01]"])
    assert [case.id for case in narrow.chosen] == ["c0", "c1", "c3"] and not narrow.whole
    assert not loaded.only(["*"]).whole
    with pytest.raises(UsageError, match="'c9'"):
        loaded.only(["c1", "c9"])


def test_a_case_s_profile_comes_first_then_the_suite_s_then_the_run_s(tmp_path: Path) -> None:
    cases = [{**ONE, "profile": "own"}, {**ONE, "id": "two"}]
    named = read_suite(write_suite(tmp_path, cases, EXACT, profile="suites"))
    assert [request_of(c, named.suite, "runs").policy_profile for c in named.cases] == ["own", "suites"]
    bare = read_suite(write_suite(tmp_path, cases, EXACT))
    assert request_of(bare.cases[1], bare.suite, "runs").policy_profile == "runs"


# ---------------------------------------------------------------- margins, and whether a dataset can decide them


def margin_suite(folder: Path, groups: int, **scorer: Any) -> Path:
    cases = [
        {"id": f"c{i}", "expected": {"exact": "yes"}, "tags": ["all"], "group": f"g{i % groups}"}
        for i in range(2 * groups)
    ]
    return write_suite(folder, cases, [{"name": "exact", **scorer}])


def test_a_tag_gate_that_its_size_cannot_decide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as raised:
        read_suite(margin_suite(tmp_path, 330, tag_margins={"all": 0.05}))
    (problem,) = raised.value.problems
    assert "330 groups" in problem.message and "takes about 331" in problem.message and problem.line > 1
    assert read_suite(margin_suite(tmp_path, 331, tag_margins={"all": 0.05})).undecidable() == []


def test_a_tag_gate_without_cases_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has 0 groups"):
        read_suite(margin_suite(tmp_path, 400, tag_margins={"none": 0.1}))


def test_a_margin_over_all_cases_that_is_too_small_is_a_warning(tmp_path: Path) -> None:
    (warning,) = read_suite(margin_suite(tmp_path, 90, margin=0.05)).undecidable()
    assert "90 groups" in warning and "331" in warning
    assert read_suite(margin_suite(tmp_path, 94, margin=0.1)).undecidable() == []


@pytest.mark.parametrize("margin", [0, -0.1, 1.5, "5 %"])
def test_a_margin_is_a_share_above_nothing(tmp_path: Path, margin: Any) -> None:
    with pytest.raises(SourceError):
        read_suite(margin_suite(tmp_path, 20, margin=margin))


def test_a_suite_without_margins_keeps_its_digest(tmp_path: Path) -> None:
    form = read_suite(margin_suite(tmp_path, 20, floor=0.5)).suite.form()
    assert "repeats" not in form and not {"margin", "tag_margins"} & set(form["scorers"][0])


def test_groups_are_the_group_then_the_first_document_then_the_case() -> None:
    documents = [{"document": "a.md"}, {"document": "b.md"}]
    form = {"id": "x", "input": {"q": "?"}, "tenant": "t", "role": "r"}
    assert group_of(Case.model_validate({**form, "group": "g", "expected": {"documents": documents}})) == "g"
    assert group_of(Case.model_validate({**form, "expected": {"documents": documents}})) == "a.md"
    assert group_of(Case.model_validate({**form, "expected": {"exact": "a"}})) == "case x"


def test_the_dataset_s_digest_is_of_the_canonical_array_of_all_cases(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3)
    assert loaded.dataset_digest == digest(canonical([case.form() for case in loaded.cases]))
    assert b"".join(canonical_array([])) == b"[]" == canonical([])
