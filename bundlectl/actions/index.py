"""index build, show and diff: documents become a snapshot with its tables, and a signed pointer names the newest."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.opening import open_trust
from bundlectl.bundling.documents import load_document
from bundlectl.insight.diff import DocumentChange
from bundlectl.model.attestation import SNAPSHOT_PAYLOAD_TYPE
from bundlectl.model.canonical import canonical, hex_of
from bundlectl.model.documents import IndexPointer, IndexSource, Snapshot
from bundlectl.model.errors import BackendUnavailable, NotFound, Problem, SourceError, UsageError, VerificationFailed
from bundlectl.model.types import Strict, format_time
from bundlectl.registry.collecting import Needs, spare
from bundlectl.registry.layout import index_folder
from bundlectl.registry.pointers import parse_pointer, read_pointer, read_snapshot
from bundlectl.registry.tables import fetch_tables, put_tables
from bundlectl.trust.envelope import envelope_bytes, seal


class IndexBuilt(Strict):
    """What index build returns. ``pinned`` is the file whose snapshot lines were set, if any."""

    app: str
    index: str
    snapshot: str
    documents: int
    sections: int
    chunks: int
    changed: bool
    folder: str
    pinned: str | None


class IndexShown(Strict):
    """The newest snapshot of an index."""

    app: str
    index: str
    snapshot: str
    checked: str
    actor: str
    documents: int
    chunks: int
    scopes: dict[str, int]
    tenants: dict[str, int]
    embedding: str


class IndexDiff(Strict):
    """Sections that differ between two snapshots."""

    a: str
    b: str
    changes: list[DocumentChange]


def index_build(ctx: Context, file: Path, *, app: str | None = None, pin: Path | None = None) -> IndexBuilt:
    """Read an index source, write the snapshot and its tables, and point at it.

    Args:
        ctx: the context; its signer must be an indexer of the app. Where its registry is no folder, the tables
            are built in the workspace and stored from there.
        file: the index source file.
        app: whose index it is; by default the app of the bundle.yaml in the folder above the file's.
        pin: a bundle's folder whose retrieval entries of this index are set to the snapshot.

    Raises:
        SourceError: a source file or document is not right.
        UsageError: the app is not known, or the key is not an indexer's.
    """
    from bundlectl.inference.embeddings import open_embedder
    from bundlectl.retrieval.documents import read_documents
    from bundlectl.retrieval.index import build_index, snapshot_digest

    source = load_document(file, IndexSource)
    owner = app or _app_of(pin or file.parent.parent)
    signer = ctx.signer("indexer")
    actor = open_trust(ctx).signing_principal(signer, "indexer", owner, None)
    if pin is not None:
        _pinned_text(pin, source.index, None)  # that it can be set, before anything is written
    folder = tables_folder(ctx, owner, source.index)
    documents = read_documents(source, file)
    ctx.reporter.say(f"indexing {len(documents)} documents")
    snapshot = build_index(
        source.index,
        documents,
        chunking=source.chunking,
        embedding=source.embedding,
        embedder=open_embedder(source.embedding),
        folder=folder,
    )
    data = canonical(snapshot.form())
    name = hex_of(snapshot_digest(snapshot))
    needs = Needs(frozenset({f"blobs/sha256/{name}"}), frozenset({f"indexes/{source.index}/{name}"}))
    spare(ctx.registry.store, owner, needs)
    found = ctx.registry.put_blob(owner, data)
    if found != snapshot_digest(snapshot):
        raise VerificationFailed(f"The snapshot {found} was built as {snapshot_digest(snapshot)}.")
    if ctx.registry_folder is None:
        ctx.reporter.say("storing the tables")
        put_tables(ctx.registry.store, owner, source.index, hex_of(found), folder / hex_of(found))
    before = ctx.registry.index_pointer(owner, source.index)
    changed = before is None or _snapshot_of(before.data) != found
    pointer = IndexPointer(
        app=owner,
        index=source.index,
        snapshot=found,
        documents=len(snapshot.documents),
        checked=ctx.clock(),
        actor=actor,
    )
    envelope = seal(canonical(pointer.form()), SNAPSHOT_PAYLOAD_TYPE, [signer])
    text = _pinned_text(pin, source.index, found) if pin is not None else None  # before the pointer moves
    ctx.registry.swap_index_pointer(owner, source.index, envelope_bytes(envelope), before.tag if before else None)
    pinned = None
    if pin is not None and text is not None:
        pinned = pin / "bundle.yaml"
        _replace(pinned, text)
    return IndexBuilt(
        app=owner,
        index=source.index,
        snapshot=found,
        documents=len(snapshot.documents),
        sections=sum(len(document.sections) for document in snapshot.documents),
        chunks=sum(len(document.chunks) for document in snapshot.documents),
        changed=changed,
        folder=str(folder),
        pinned=str(pinned) if pinned else None,
    )


def _snapshot_of(pointer: bytes) -> str | None:
    """Give the snapshot of the pointer that is replaced; None where it is damaged: replacing it is the cure."""
    try:
        return parse_pointer(pointer).snapshot
    except VerificationFailed:
        return None


def index_show(ctx: Context, app: str, index: str) -> IndexShown:
    """Show the newest snapshot of an index, verified.

    Raises:
        NotFound: the index was never built.
        VerificationFailed: its pointer or snapshot is not what it must be.
    """
    pointer, _ = read_pointer(ctx.registry, open_trust(ctx), app, index)
    snapshot = read_snapshot(ctx.registry, app, pointer.snapshot)
    scopes: dict[str, int] = {}
    tenants: dict[str, int] = {}
    for document in snapshot.documents:
        scopes[document.acl.scope] = scopes.get(document.acl.scope, 0) + 1
        tenants[document.acl.tenant] = tenants.get(document.acl.tenant, 0) + 1
    return IndexShown(
        app=app,
        index=index,
        snapshot=pointer.snapshot,
        checked=format_time(pointer.checked),
        actor=pointer.actor,
        documents=len(snapshot.documents),
        chunks=sum(len(document.chunks) for document in snapshot.documents),
        scopes=scopes,
        tenants=tenants,
        embedding=f"{snapshot.embedding.provider}/{snapshot.embedding.model}",
    )


def index_diff(ctx: Context, app: str, a: str, b: str) -> IndexDiff:
    """Compare two snapshots by section; ``a`` and ``b`` are digests.

    Raises:
        NotFound: a snapshot is not in the registry.
    """
    return IndexDiff(a=a, b=b, changes=section_changes(ctx, app, a, b))


def section_changes(ctx: Context, app: str, a: str, b: str) -> list[DocumentChange]:
    """Give the sections that differ between two snapshots, with renames where the tables are at hand."""
    from bundlectl.retrieval.sections import diff_snapshots

    first, second = read_snapshot(ctx.registry, app, a), read_snapshot(ctx.registry, app, b)
    changes = diff_snapshots(first, second, _texts(ctx, app, first), _texts(ctx, app, second))
    return [
        DocumentChange(
            document=change.document,
            section=list(change.section),
            kind=change.kind,
            was=list(change.was) if change.was else None,
        )
        for change in changes
    ]


def _texts(
    ctx: Context, app: str, snapshot: Snapshot
) -> Callable[[], dict[tuple[str, tuple[str, ...], int], str]] | None:
    """Give the function that reads a snapshot's section texts; without its tables renames show as two changes."""
    from bundlectl.retrieval.index import open_index, snapshot_digest

    folder = tables_folder(ctx, app, snapshot.index)
    try:
        if ctx.registry_folder is None:
            fetch_tables(ctx.registry.store, app, snapshot.index, hex_of(snapshot_digest(snapshot)), folder)
        return open_index(folder, snapshot, None).section_texts
    except NotFound:
        return None


def tables_folder(ctx: Context, app: str, index: str) -> Path:
    """Give the folder that an index's tables are built in and read from: the registry's, or else this machine's."""
    folder = ctx.registry_folder
    if folder is None:
        return ctx.workspace / "cache" / "tables" / app / index
    return folder / index_folder(app, index)


def _app_of(folder: Path) -> str:
    from bundlectl.bundling.yaml import parse_yaml

    file = folder / "bundle.yaml"
    try:
        document = parse_yaml(file.read_bytes(), str(file))
    except OSError:
        raise UsageError(
            "The index's app is not known.", why=f"There is no {file}.", fix="Name it: --app NAME"
        ) from None
    if document.problems:
        raise SourceError(document.problems)
    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("app"), str):
        raise SourceError([Problem(str(file), 1, "it names no app", "app: NAME")])
    return str(value["app"])


_SNAPSHOT = re.compile(r"(?P<before>\bsnapshot:\s*)(?P<value>following|sha256:[0-9a-f]{64})")


def _pinned_text(folder: Path, index: str, snapshot: str | None) -> str:
    """Give bundle.yaml with ``snapshot:`` set in each retrieval entry of the index, and nothing else changed.

    Args:
        folder: the bundle's.
        index: whose entries.
        snapshot: what to set; ``None`` to find out only whether it can be set.

    Raises:
        SourceError: bundle.yaml has no such entry that can be set in place.
        NotFound: there is no bundle.yaml.
        BackendUnavailable: the folder cannot be written to.
    """
    from bundlectl.bundling.yaml import parse_yaml

    file = folder / "bundle.yaml"
    try:
        data = file.read_bytes()
    except OSError as error:
        raise NotFound(f"{file} cannot be read.", why=error.strerror or str(error), fix="Correct --pin.") from error
    if not os.access(folder, os.W_OK):
        what = f"The snapshot cannot be set in {file}."
        raise BackendUnavailable(what, why=f"{folder} may not be written to.", fix="Give this user the permission.")
    document = parse_yaml(data, str(file))
    if document.problems:
        raise SourceError(document.problems)
    retrieval = document.value.get("retrieval") if isinstance(document.value, dict) else None
    retrieval = retrieval if isinstance(retrieval, dict) else {}
    uses = [name for name, entry in retrieval.items() if isinstance(entry, dict) and entry.get("index") == index]
    if not uses:
        raise SourceError([Problem(str(file), 1, f"no retrieval entry uses index {index!r}", f"index: {index}")])
    lines = data.decode("utf-8").splitlines(keepends=True)
    for name in uses:
        line = document.place(("retrieval", name, "snapshot")).line - 1
        changed, count = _SNAPSHOT.subn(lambda m: m["before"] + (snapshot or m["value"]), lines[line])
        if count != 1:
            right = "write snapshot: and its value on one line, one entry a line"
            raise SourceError([Problem(str(file), line + 1, f"cannot set the snapshot of {name!r} here", right)])
        lines[line] = changed
    return "".join(lines)


def _replace(file: Path, text: str) -> None:
    """Put a whole new file in place of the old one, or leave the old one."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as out:
            out.write(text)
        Path(name).chmod(file.stat().st_mode & 0o777)
        Path(name).replace(file)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
