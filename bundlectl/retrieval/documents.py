"""From an index source to its documents: which files, whose they are, and what they say.

Labels in the index source win over a file's own front matter, so that a file cannot give itself to a wider
audience than its folder has. A document whose tenant, scope or roles nobody gave is refused: there is no
default, because the comfortable one would be everybody.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bundlectl.model.canonical import canonical, digest
from bundlectl.model.documents import Acl, IndexSource, IndexSourceEntry
from bundlectl.model.errors import Problem, SourceError
from bundlectl.model.types import check_relative_path
from bundlectl.retrieval.formats import READERS, Mislabelled, Parsed, Unreadable
from bundlectl.retrieval.markdown import Section

MAX_BYTES = 32 * 1024 * 1024
"""Largest document that is read."""


@dataclass(frozen=True, slots=True)
class Document:
    """One document as it will be indexed.

    ``key`` is its path relative to the source's base; ``version`` the digest of its text and labels. Offsets of
    ``sections`` (and later of chunks) count characters of ``text``.
    """

    key: str
    version: str
    title: str
    acl: Acl
    updated: str | None
    text: str
    sections: tuple[Section, ...]


def make_document(key: str, parsed: Parsed, acl: Acl) -> Document:
    """Join content and labels; the version covers everything that is served or decided on."""
    title = parsed.title or PurePosixPath(key).stem
    updated = parsed.labels.updated
    labels = {"text": parsed.text, "title": title, "acl": acl.form(), "updated": updated}
    version = digest(canonical(labels))
    return Document(key, version, title, acl, updated, parsed.text, parsed.sections)


def read_documents(index_source: IndexSource, file: Path) -> list[Document]:
    """Read every document of an index source, sorted by key.

    Args:
        index_source: the source.
        file: the path it was read from; ``base`` is relative to its folder and may go above it, the files that
            are included must lie under the base, without symbolic links.

    Raises:
        SourceError: every problem of every file, each with its place.
    """
    shown = Path(os.path.normpath(file.parent / index_source.base))
    base = shown.resolve()
    if not base.is_dir():
        raise SourceError([Problem(str(file), 0, f"base '{index_source.base}' is no folder")])
    problems: list[Problem] = []
    owners: dict[str, int] = {}
    for number, entry in enumerate(index_source.sources):
        for key in _included(entry, number, base, file, problems):
            if owners.setdefault(key, number) != number:
                both = f"sources[{owners[key]}] and sources[{number}]"
                message = f"'{key}' is included by both {both}: whose labels hold is not clear"
                problems.append(Problem(str(file), 0, message, "let one of them include it"))
    documents: list[Document] = []
    for key in sorted(owners):
        document = _read(key, index_source.sources[owners[key]], base, str(shown / key), problems)
        if document is not None:
            documents.append(document)
    if problems:
        raise SourceError(problems)
    return documents


def included_files(index_source: IndexSource, file: Path) -> set[Path]:
    """Give the files that an index source that was read includes by now; ``file`` as for :func:`read_documents`."""
    base = (file.parent / index_source.base).resolve()
    patterns = [pattern for entry in index_source.sources for pattern in entry.include]
    return {path for pattern in patterns for path in base.glob(pattern) if not path.is_dir()}


def _included(entry: IndexSourceEntry, number: int, base: Path, file: Path, problems: list[Problem]) -> Iterator[str]:
    """Give the keys of one entry's files; a pattern that matches nothing is a problem, not an empty index."""
    keys: set[str] = set()
    for pattern in entry.include:
        try:
            check_relative_path(pattern)
            matched = sorted(base.glob(pattern))
        except ValueError as error:
            problems.append(Problem(str(file), 0, f"sources[{number}].include: {error}", "e.g. docs/**/*.md"))
            continue
        files = [path for path in matched if path.is_symlink() or not path.is_dir()]
        if not files:
            message = f"sources[{number}].include: '{pattern}' matches no file under {base.name}/"
            problems.append(Problem(str(file), 0, message, "a path or pattern relative to base"))
        keys.update(path.relative_to(base).as_posix() for path in files)
    yield from sorted(keys)


def _read(key: str, entry: IndexSourceEntry, base: Path, shown: str, problems: list[Problem]) -> Document | None:
    ending = PurePosixPath(key).suffix.lower()
    reader = READERS.get(ending)
    try:
        check_relative_path(key)
        if reader is None:
            known = ", ".join(READERS)
            raise Unreadable(f"files ending in '{ending}' cannot be indexed", right=f"one of {known}")
        parsed = reader(_bytes(base, key), shown)
    except Mislabelled as error:
        problems.extend(error.problems)
        return None
    except Unreadable as error:
        problems.append(Problem(shown, error.line, error.message, error.right))
        return None
    except ValueError as error:
        problems.append(Problem(shown, 0, str(error)))
        return None
    acl = _acl(entry, parsed, shown, problems)
    if not parsed.sections:
        problems.append(Problem(shown, 0, "the document has no text", "leave it out of 'include', or write it"))
        return None
    return None if acl is None else make_document(key, parsed, acl)


def _acl(entry: IndexSourceEntry, parsed: Parsed, shown: str, problems: list[Problem]) -> Acl | None:
    tenant = entry.tenant if entry.tenant is not None else parsed.labels.tenant
    roles = entry.roles if entry.roles is not None else parsed.labels.roles
    missing = [name for name, value in (("tenant", tenant), ("roles", roles)) if not value]
    if tenant is None or not roles or missing:
        message = f"the document has no {' and no '.join(missing)}, so nobody knows who may read it"
        right = "give it in the front matter or in the index source, e.g. tenant: acme, roles: [support_agent]"
        problems.append(Problem(shown, 1, message, f'{right}; "*" stands for all'))
        return None
    return Acl(tenant=tenant, scope=entry.scope, roles=sorted(set(roles)))


def _bytes(base: Path, key: str) -> bytes:
    """Read a regular file under the base. Neither it nor a folder on the way may be a symbolic link.

    Raises:
        Unreadable: it is something else, too large, or cannot be read.
    """
    path = base / key
    if path.resolve() != path:
        raise Unreadable("reached through a symbolic link", right="include the file itself")
    try:
        # O_NONBLOCK: opening a FIFO must not wait for a writer
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(handle, "rb") as opened:
            state = os.fstat(opened.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise Unreadable("not a regular file", right="a file")
            if state.st_size > MAX_BYTES:
                raise Unreadable(f"larger than {MAX_BYTES} bytes", right="split it")
            return opened.read()
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
