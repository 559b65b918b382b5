"""What `dev` notices: documents that an index includes, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bundlectl.actions.dev import Settings, _Loop
from bundlectl.bundling.documents import load_document
from bundlectl.model.documents import IndexSource
from tests.support.workspace import Workspace


def test_a_new_document_outside_of_the_source_is_noticed(work: Workspace, tmp_path: Path) -> None:
    handbook = work.folder.parent / "handbook"
    handbook.mkdir(exist_ok=True)
    (handbook / "one.md").write_text("# One\n")
    file = next((work.folder / "indexes").glob("*.yaml"))
    source = load_document(file, IndexSource)
    entry = source.sources[0].model_copy(update={"include": ["handbook/**/*.md"]})
    show: Any = None
    settings = Settings([], "acme", "agent", None, "dev", once=True, port=None)
    loop = _Loop(work.context(), work.folder, settings, show)
    loop._indexed = {file: source.model_copy(update={"base": "../..", "sources": [entry]})}
    before = loop._stamp()
    assert str(handbook / "one.md") in before
    (handbook / "two.md").write_text("# Two\n")
    (handbook / "not-included.txt").write_text("no")
    assert set(loop._stamp()) - set(before) == {str(handbook / "two.md")}
