from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlectl.bundling.build import build
from bundlectl.bundling.documents import load_document
from bundlectl.bundling.lint import lint
from bundlectl.bundling.scaffold import write_scaffold
from bundlectl.bundling.source import read_source
from bundlectl.model.documents import IndexSource
from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.suite import Case, Suite


@pytest.mark.parametrize("app", ["shop", "my-app", "123", "no", "1e3", "null", "a" * 40])
def test_it_validates_builds_and_names_the_app(tmp_path: Path, app: str) -> None:
    written = write_scaffold(tmp_path / "new", app)
    assert all(path.is_file() for path in written)
    source = read_source(tmp_path / "new")
    assert source.app == app
    assert build(source).components.evaluation.suites == [app]
    assert set(source.bindings) == {"dev", "staging", "prod"}
    assert [finding.rule for finding in lint(source.components)] == ["floating-snapshot"]
    texts = "".join(path.read_text() for path in written)
    assert "{app}" not in texts and "APP" not in texts


def test_its_suite_fits_its_bundle_and_documents(tmp_path: Path) -> None:
    written = write_scaffold(tmp_path, "shop")
    components = read_source(tmp_path).components
    suite = load_document(tmp_path / "evals" / "shop.yaml", Suite)
    task = components.application.tasks[suite.task]
    assert suite.profile in task.profiles
    lines = (tmp_path / "evals" / suite.dataset).read_text().splitlines()
    cases = [Case.model_validate(json.loads(line)) for line in lines]
    assert {case.id for case in cases} >= set(suite.must_pass)
    assert len({case.id for case in cases}) == len(cases) >= 6
    for case in cases:
        assert set(case.scopes) <= set(task.scopes)
        for expected in case.expected.documents or []:
            text = (tmp_path / expected.document).read_text()
            assert expected.section is not None
            assert f"# {expected.section[0]}\n" in text and f"## {expected.section[1]}\n" in text
            assert all(each in text.replace("\n", " ") for each in case.expected.contains or [])
    index = load_document(tmp_path / "indexes" / "help.yaml", IndexSource)
    assert {entry.scope for entry in index.sources} == set(task.scopes)
    assert index.embedding == components.embedding
    assert tmp_path / ".gitignore" in written


def test_it_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "answer.yaml").write_text("mine")
    (tmp_path / "bundle.yaml").symlink_to("nowhere")
    with pytest.raises(UsageError, match=r"bundle.yaml, .*answer.yaml"):
        write_scaffold(tmp_path, "shop")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["answer.yaml", "bundle.yaml", "prompts"]
    assert (tmp_path / "prompts" / "answer.yaml").read_text() == "mine"


@pytest.mark.parametrize("app", ["", "Shop", "a/b", "..", "a_b", "-a", "a" * 41])
def test_app_names(tmp_path: Path, app: str) -> None:
    with pytest.raises(UsageError, match="is no app name"):
        write_scaffold(tmp_path / "new", app)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("")
    with pytest.raises(BackendUnavailable, match="cannot be written"):
        write_scaffold(tmp_path / "new", "shop")
