"""Comparing snapshots: by section, with renames found by text and by likeness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bundlectl.retrieval.documents import Document
from bundlectl.retrieval.sections import SectionChange, diff_snapshots
from tests.retrieval.builders import acl, document, index_of

LONG = "The pump must be oiled every week by a trained person who wears gloves and goggles and signs the book."


def changes(tmp_path: Path, a: Sequence[Document], b: Sequence[Document], texts: bool = True) -> list[SectionChange]:
    first, second = index_of(tmp_path, a), index_of(tmp_path, b)
    if not texts:
        return diff_snapshots(first.snapshot, second.snapshot)
    return diff_snapshots(first.snapshot, second.snapshot, first.section_texts, second.section_texts)


def shown(found: list[SectionChange]) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...] | None]]:
    return [(change.kind, change.document, change.section, change.was) for change in found]


def test_nothing_differs(tmp_path: Path) -> None:
    pages = [document("a.md", "# A\n\none\n\n## B\n\ntwo")]
    assert changes(tmp_path, pages, pages) == []


def test_reflow_is_no_change_though_chunks_move(tmp_path: Path) -> None:
    assert changes(tmp_path, [document("a.md", "# A\n\none two")], [document("a.md", "\n\n# A\n\none\ntwo\n")]) == []


def test_changed_added_removed(tmp_path: Path) -> None:
    a = [document("a.md", "# A\n\none\n\n## Old\n\nwater steam"), document("gone.md", "# G\n\nfarewell")]
    b = [document("a.md", "# A\n\none more\n\n## New\n\nfire ash"), document("new.md", "# N\n\nhello")]
    assert shown(changes(tmp_path, a, b)) == [
        ("changed", "a.md", ("A",), None),
        ("added", "a.md", ("A", "New"), None),
        ("removed", "a.md", ("A", "Old"), None),
        ("removed", "gone.md", ("G",), None),
        ("added", "new.md", ("N",), None),
    ]


def test_same_text_under_another_heading_is_renamed(tmp_path: Path) -> None:
    a = [document("a.md", f"# A\n\n## Old\n\n{LONG}")]
    b = [document("a.md", f"# A\n\n## New\n\n{LONG}")]
    (change,) = changes(tmp_path, a, b, texts=False)
    assert (change.kind, change.section, change.was, change.was_document) == (
        "renamed",
        ("A", "New"),
        ("A", "Old"),
        "a.md",
    )
    assert not change.text


def test_same_text_in_another_document_is_renamed(tmp_path: Path) -> None:
    keep = document("keep.md", "# K\n\nkeep")
    (change,) = changes(
        tmp_path, [keep, document("a.md", f"# A\n\n{LONG}")], [keep, document("b.md", f"# A\n\n{LONG}")]
    )
    assert (change.kind, change.document, change.was_document) == ("renamed", "b.md", "a.md")


def test_alike_text_is_renamed_where_texts_are_at_hand(tmp_path: Path) -> None:
    a = [document("a.md", f"# A\n\n## Old\n\n{LONG}")]
    b = [document("a.md", f"# A\n\n## New\n\n{LONG.replace('week', 'month')}")]
    (change,) = changes(tmp_path, a, b)
    assert (change.kind, change.was, change.text) == ("renamed", ("A", "Old"), True)
    assert [change.kind for change in changes(tmp_path, a, b, texts=False)] == ["added", "removed"]


def test_unlike_text_is_not_renamed(tmp_path: Path) -> None:
    a = [document("a.md", f"# A\n\n## Old\n\n{LONG}")]
    b = [document("a.md", f"# A\n\n## New\n\n{' '.join(LONG.split()[:12])}")]
    assert [change.kind for change in changes(tmp_path, a, b)] == ["added", "removed"]


def test_the_most_alike_are_paired(tmp_path: Path) -> None:
    near, far = LONG.replace("week", "month"), LONG.replace("week", "month").replace("book", "sheet")
    a = [document("a.md", f"# A\n\n## Old\n\n{LONG}")]
    b = [document("a.md", f"# A\n\n## Far\n\n{far}\n\n## Near\n\n{near}")]
    assert shown(changes(tmp_path, a, b)) == [
        ("added", "a.md", ("A", "Far"), None),
        ("renamed", "a.md", ("A", "Near"), ("A", "Old")),
    ]


def test_other_permissions_are_a_change(tmp_path: Path) -> None:
    a = [document("a.md", "# A\n\none", acl("acme", roles=["lead"]))]
    b = [document("a.md", "# A\n\none", acl("acme", roles=["agent", "lead"]))]
    (change,) = changes(tmp_path, a, b)
    assert (change.kind, change.text, change.permissions) == ("changed", False, True)
    assert (change.before, change.after) == (a[0].acl, b[0].acl)


def test_a_second_section_of_the_same_heading(tmp_path: Path) -> None:
    a = [document("a.md", "# A\n\n## B\n\none")]
    b = [document("a.md", "# A\n\n## B\n\none\n\n## B\n\ntwo")]
    (change,) = changes(tmp_path, a, b)
    assert (change.kind, change.section, change.ordinal) == ("added", ("A", "B"), 1)
