"""Pinning a snapshot sets its digest in bundle.yaml, and changes no other character of it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from bundlectl.actions.index import _pinned_text, _replace, index_build
from bundlectl.model.errors import NotFound, SourceError
from tests.support.workspace import APP, Workspace

OLD, NEW = "sha256:" + "0" * 64, "sha256:" + "a" * 64


def pin(tmp_path: Path, text: str, index: str = "docs") -> str:
    file = tmp_path / "bundle.yaml"
    file.write_bytes(text.encode())
    _replace(file, _pinned_text(tmp_path, index, NEW))
    return file.read_bytes().decode()


@pytest.mark.parametrize(
    "text",
    [
        f"retrieval:\n  a: {{index: docs, snapshot: {OLD}, mode: lexical}}  # why\n",
        f"# snapshot: {OLD}\nretrieval:\n  a:\n    # snapshot: following\n    index: docs\n    snapshot: {OLD}  # x\n",
        f"retrieval:\n  a:\n    index: docs\n    snapshot:   {OLD}",
    ],
)
def test_only_the_digest_changes(tmp_path: Path, text: str) -> None:
    at = text.rindex(OLD)
    assert pin(tmp_path, text) == text[:at] + NEW + text[at + len(OLD) :]


def test_each_entry_of_the_index_and_no_other(tmp_path: Path) -> None:
    text = (
        f"retrieval:\n  a: {{index: docs, snapshot: {OLD}}}\n  b: {{index: other, snapshot: {OLD}}}\n"
        "  c:\n    index: docs\n    snapshot: following\n"
    )
    assert pin(tmp_path, text) == (
        f"retrieval:\n  a: {{index: docs, snapshot: {NEW}}}\n  b: {{index: other, snapshot: {OLD}}}\n"
        f"  c:\n    index: docs\n    snapshot: {NEW}\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        f"retrieval: {{a: {{index: docs, snapshot: {OLD}}}, b: {{index: docs, snapshot: {OLD}}}}}\n",
        f'retrieval:\n  a: {{index: docs, snapshot: "{OLD}"}}\n',
        f"retrieval:\n  a: {{index: docs, snapshot: {OLD}}}  # not snapshot: following\n",
        "retrieval:\n  a: {index: docs}\n",
        f"retrieval:\n  a: {{index: other, snapshot: {OLD}}}\n",
        f"retrieval:\r\n  a: {{index: docs, snapshot: {OLD}}}\r\n",
        "retrieval: []\n",
        "[]\n",
    ],
)
def test_what_cannot_be_set_in_place_is_left_alone(tmp_path: Path, text: str) -> None:
    with pytest.raises(SourceError):
        pin(tmp_path, text)
    assert (tmp_path / "bundle.yaml").read_bytes() == text.encode()
    assert [file.name for file in tmp_path.iterdir()] == ["bundle.yaml"]


def test_the_file_keeps_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "bundle.yaml"
    file.write_text(f"retrieval:\n  a: {{index: docs, snapshot: {OLD}}}\n")
    file.chmod(0o640)
    _replace(file, _pinned_text(tmp_path, "docs", NEW))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_what_cannot_be_pinned_moves_no_pointer(work: Workspace) -> None:
    file = next((work.folder / "indexes").glob("*.yaml"))
    index = file.stem
    ctx = work.context()
    before = ctx.registry.index_pointer(APP, index)
    other = work.folder.parent / "other"
    other.mkdir()
    (other / "bundle.yaml").write_text(f"retrieval:\n  a: {{index: another, snapshot: {OLD}}}\n")
    with pytest.raises(SourceError, match="no retrieval entry uses"):
        index_build(ctx, file, app=APP, pin=other)
    (other / "bundle.yaml").unlink()
    with pytest.raises(NotFound, match="cannot be read"):
        index_build(ctx, file, app=APP, pin=other)
    assert ctx.registry.index_pointer(APP, index) == before
