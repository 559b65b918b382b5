"""Compare two snapshots by section: not by chunk, because a word more moves every border behind it.

1. Sections with the same document, heading path and ordinal are one section: unchanged, or ``changed`` when
   its normalised text or its labels differ.
2. What is left over on both sides and has the same text was ``renamed`` (another heading, place or document).
3. What is still left over is ``renamed`` when its words are alike: Jaccard >= .8, the most alike first. This
   needs the texts; without them such sections show as removed and added.
4. The rest was ``added`` or ``removed``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from bundlectl.inference.words import words
from bundlectl.model.documents import Acl, Snapshot

ALIKE = 0.8
"""Least Jaccard similarity of two sections' words at which they count as one."""

SectionKey = tuple[str, tuple[str, ...], int]
"""Document, heading path, ordinal among the sections of that path."""

SectionTexts = Callable[[], Mapping[SectionKey, str]]
"""Reads a snapshot's texts, such as :meth:`bundlectl.retrieval.search.Index.section_texts`; called when needed."""


@dataclass(frozen=True, slots=True)
class SectionChange:
    """One section that differs between A and B.

    ``document`` and ``section`` are B's, or A's where it was removed. ``was`` is the former heading path and
    ``was_document`` the former document of a renamed section. ``text`` says that its words changed,
    ``permissions`` that its labels did: from ``before`` to ``after``.
    """

    kind: Literal["added", "removed", "changed", "renamed"]
    document: str
    section: tuple[str, ...]
    ordinal: int
    was: tuple[str, ...] | None = None
    was_document: str | None = None
    text: bool = False
    permissions: bool = False
    before: Acl | None = None
    after: Acl | None = None


@dataclass(frozen=True, slots=True)
class _Section:
    key: SectionKey
    digest: str
    acl: Acl


def diff_snapshots(
    a: Snapshot, b: Snapshot, texts_a: SectionTexts | None = None, texts_b: SectionTexts | None = None
) -> list[SectionChange]:
    """Give the sections that differ, in order of document and heading path.

    Args:
        a: the snapshot before.
        b: the snapshot after.
        texts_a: reads A's section texts, for renamed sections whose text changed as well.
        texts_b: reads B's.
    """
    first, second = _sections(a), _sections(b)
    changes = [
        _change("changed", first[key], second[key])
        for key in first.keys() & second.keys()
        if _differ(first[key], second[key])
    ]
    gone = {key: first[key] for key in sorted(first.keys() - second.keys())}
    new = {key: second[key] for key in sorted(second.keys() - first.keys())}
    pairs = _same_text(gone, new)
    for before, after in pairs:
        del gone[before], new[after]
    if gone and new and texts_a is not None and texts_b is not None:
        before_texts, after_texts = texts_a(), texts_b()
        alike = _alike({key: before_texts.get(key, "") for key in gone}, {key: after_texts.get(key, "") for key in new})
        for before, after in alike:
            del gone[before], new[after]
        pairs += alike
    changes += [_change("renamed", first[before], second[after]) for before, after in pairs]
    changes += [_alone("removed", section) for section in gone.values()]
    changes += [_alone("added", section) for section in new.values()]
    return sorted(changes, key=lambda change: (change.document, change.section, change.ordinal, change.kind))


def _sections(snapshot: Snapshot) -> dict[SectionKey, _Section]:
    found: dict[SectionKey, _Section] = {}
    for document in snapshot.documents:
        for section in document.sections:
            key = (document.document, tuple(section.path), section.ordinal)
            found[key] = _Section(key, section.digest, document.acl)
    return found


def _differ(a: _Section, b: _Section) -> bool:
    return a.digest != b.digest or a.acl != b.acl


def _same_text(
    gone: Mapping[SectionKey, _Section], new: Mapping[SectionKey, _Section]
) -> list[tuple[SectionKey, SectionKey]]:
    """Pair sections of equal text; among several, those of one document first, then in order."""
    waiting: dict[str, list[SectionKey]] = defaultdict(list)
    for key, section in gone.items():
        waiting[section.digest].append(key)
    pairs: list[tuple[SectionKey, SectionKey]] = []
    for same_document in (True, False):
        taken = {after for _, after in pairs}
        for key, section in new.items():
            held = waiting[section.digest]
            match = next((one for one in held if one[0] == key[0] or not same_document), None)
            if match is not None and key not in taken:
                held.remove(match)
                pairs.append((match, key))
    return pairs


def _alike(gone: Mapping[SectionKey, str], new: Mapping[SectionKey, str]) -> list[tuple[SectionKey, SectionKey]]:
    """Pair sections by their words, the most alike first; equals in order of key."""
    before = {key: frozenset(words(text)) for key, text in gone.items()}
    after = {key: frozenset(words(text)) for key, text in new.items()}
    found = sorted(
        (-similarity, old, now)
        for old, old_words in before.items()
        for now, now_words in after.items()
        if (similarity := _jaccard(old_words, now_words)) >= ALIKE
    )
    pairs: list[tuple[SectionKey, SectionKey]] = []
    used: set[tuple[str, SectionKey]] = set()
    for _, old, now in found:
        if ("a", old) not in used and ("b", now) not in used:
            used |= {("a", old), ("b", now)}
            pairs.append((old, now))
    return pairs


def _jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    # the sizes bound the similarity: most pairs are settled without comparing a word
    if not a or not b or min(len(a), len(b)) < ALIKE * max(len(a), len(b)):
        return 0.0
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def _change(kind: Literal["changed", "renamed"], before: _Section, after: _Section) -> SectionChange:
    document, section, ordinal = after.key
    return SectionChange(
        kind,
        document,
        section,
        ordinal,
        was=before.key[1] if kind == "renamed" else None,
        was_document=before.key[0] if kind == "renamed" else None,
        text=before.digest != after.digest,
        permissions=before.acl != after.acl,
        before=before.acl,
        after=after.acl,
    )


def _alone(kind: Literal["added", "removed"], section: _Section) -> SectionChange:
    document, path, ordinal = section.key
    if kind == "added":
        return SectionChange(kind, document, path, ordinal, text=True, after=section.acl)
    return SectionChange(kind, document, path, ordinal, text=True, before=section.acl)
