"""Where the router's indexes come from: a registry's snapshots, pinned or followed, and their copies on disk.

A pinned snapshot is believed because the signed bundle names its digest. A followed one is believed on an
indexer's signature. Tables are believed only as far as the snapshot lists each chunk that they give.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bundlectl.model.canonical import digest, hex_of
from bundlectl.model.components import Retrieval
from bundlectl.model.documents import IndexPointer, Snapshot
from bundlectl.model.errors import BackendUnavailable, BundlectlError, NotFound, VerificationFailed
from bundlectl.model.types import format_time
from bundlectl.registry.layout import index_folder
from bundlectl.registry.pointers import parse_snapshot, read_pointer, verify_pointer
from bundlectl.registry.tables import fetch_tables
from bundlectl.router.assemble import LiveIndex, OpenIndex

if TYPE_CHECKING:
    from bundlectl.inference.embeddings import Embedder
    from bundlectl.registry.registry import Registry
    from bundlectl.trust.keyring import VerifiedKeyring


class Indexes:
    """Opens a registry's indexes for :class:`~bundlectl.router.assemble.World`.

    Args:
        registry: where snapshots and pointers are.
        folder: the registry's folder, where tables lie; None where each index's address is bound.
        keyring: gives root's newest verified word; asked only for followed indexes.
        cache: a folder that snapshots and tables are copied to and served from; None: served in place.
        downloads: where tables are put that the registry gives as objects, when there is no cache.
        refresh: seconds between looks at a followed index's pointer.
        on_warning: told what went wrong without stopping an answer.
    """

    def __init__(
        self,
        registry: Registry,
        folder: Path | None,
        keyring: Callable[[], VerifiedKeyring],
        *,
        cache: Path | None = None,
        downloads: Path | None = None,
        refresh: float = 30.0,
        on_warning: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._folder = folder
        self._keyring = keyring
        self._cache = cache
        self._downloads = cache or downloads
        self._refresh = refresh
        self._warn = on_warning
        self._believed: dict[tuple[str, str], tuple[IndexPointer, bytes]] = {}

    async def open(self, app: str, retrieval: Retrieval, address: str | None, embedder: Embedder | None) -> LiveIndex:
        """Open what a retrieval names: one snapshot for good, or whatever is newest.

        Raises:
            NotFound: the index was never built.
            VerificationFailed: pointer or snapshot cannot be believed.
            BackendUnavailable: it cannot be read.
        """
        if retrieval.snapshot != "following":
            opened = await asyncio.to_thread(self._pinned, app, retrieval, address, embedder)
            return opened
        first = await asyncio.to_thread(self._newest, app, retrieval.index, address, embedder)
        return _Followed(
            first,
            lambda: self._newest(app, retrieval.index, address, embedder),
            lambda snapshot: self._keyring().blocked(snapshot),
            self._refresh,
            self._warn,
        )

    def _pinned(self, app: str, retrieval: Retrieval, address: str | None, embedder: Embedder | None) -> OpenIndex:
        checked: datetime | None = None
        try:
            pointer, _ = self._pointer(app, retrieval.index)
            # Only the newest snapshot's source was looked at when the pointer was signed.
            checked = pointer.checked if pointer.snapshot == retrieval.snapshot else None
        except BundlectlError as error:
            self._warn(f"how fresh index {retrieval.index} is cannot be told: {error.what}")
        return self._open(app, retrieval.index, retrieval.snapshot, address, embedder, checked, following=False)

    def _newest(self, app: str, index: str, address: str | None, embedder: Embedder | None) -> OpenIndex:
        pointer, data = self._pointer(app, index)
        opened = self._open(app, index, pointer.snapshot, address, embedder, pointer.checked, following=True)
        if self._cache is not None:
            _put(self._pointer_file(app, index), data)
        return opened

    def _pointer(self, app: str, index: str) -> tuple[IndexPointer, bytes]:
        """Give the newest pointer that was ever believed here: an older one put back brings no old documents back."""
        keyring = self._keyring()
        try:
            found = read_pointer(self._registry, keyring, app, index)
        except (BackendUnavailable, NotFound):
            # Away, or its folder moved: what was believed before is on disk, and is verified again.
            kept = self._kept_pointer(keyring, app, index)
            if kept is None:
                raise
            return kept
        try:
            kept = self._kept_pointer(keyring, app, index)
        except (VerificationFailed, BackendUnavailable) as error:
            self._warn(f"the pointer of index {index} that was kept does not count any more: {error.what}")
            kept = None
        if kept is not None and found[0].checked < kept[0].checked:
            self._warn(
                f"an older pointer of index {index} was put back: of {format_time(found[0].checked)}, and one of "
                f"{format_time(kept[0].checked)} was believed before, which goes on serving"
            )
            found = kept
        self._believed[app, index] = found
        return found

    def _kept_pointer(self, keyring: VerifiedKeyring, app: str, index: str) -> tuple[IndexPointer, bytes] | None:
        """Give what was believed last, verified again: in this process, else what is on disk."""
        data = self._believed[app, index][1] if (app, index) in self._believed else None
        if data is None and self._cache is not None:
            try:
                data = self._pointer_file(app, index).read_bytes()
            except FileNotFoundError:
                return None
            except OSError as error:
                raise BackendUnavailable(f"The kept pointer of {index} cannot be read.", why=str(error)) from error
        return (verify_pointer(data, keyring, app, index), data) if data is not None else None

    def _open(
        self,
        app: str,
        index: str,
        snapshot_digest: str,
        address: str | None,
        embedder: Embedder | None,
        checked: datetime | None,
        *,
        following: bool,
    ) -> OpenIndex:
        from bundlectl.retrieval.index import open_index

        snapshot = self._snapshot(app, snapshot_digest)
        where = address or self._tables(app, index, snapshot_digest)
        index_opened = open_index(where, snapshot, embedder)
        return OpenIndex(searcher=index_opened, snapshot=snapshot_digest, following=following, checked=checked)

    def _snapshot(self, app: str, snapshot: str) -> Snapshot:
        if self._cache is None:
            return parse_snapshot(self._registry.get_blob(app, snapshot), snapshot)
        file = self._cache / "snapshots" / hex_of(snapshot)
        if file.is_file():
            kept = file.read_bytes()
            if digest(kept) == snapshot:
                return parse_snapshot(kept, snapshot)
            self._warn(f"the copy of snapshot {snapshot} on disk is damaged and is fetched again")
        data = self._registry.get_blob(app, snapshot)
        _put(file, data)
        return parse_snapshot(data, snapshot)

    def _tables(self, app: str, index: str, snapshot: str) -> Path | str:
        """Give the folder that holds the snapshot's tables: the copy's, else the registry's."""
        if self._folder is None:
            if self._downloads is None:
                raise NotFound(
                    f"Where the index {index} lies is not known.", fix=f"Bind it: indexes: {{{index}: s3://…}}"
                )
            fetched = self._downloads / "tables" / app / index
            fetch_tables(self._registry.store, app, index, hex_of(snapshot), fetched)
            return fetched
        origin = self._folder / index_folder(app, index)
        if self._cache is None:
            return origin
        kept = self._cache / "tables" / app / index
        if (kept / hex_of(snapshot)).is_dir() and not self._kept_whole(kept / hex_of(snapshot)):
            shutil.rmtree(kept / hex_of(snapshot), ignore_errors=True)
        if not (kept / hex_of(snapshot)).is_dir():
            _copy(origin / hex_of(snapshot), kept / hex_of(snapshot), index)
        return kept

    def _kept_whole(self, folder: Path) -> bool:
        """Say whether the copy on disk is what was copied; where it is not, the registry's is copied again."""
        from bundlectl.retrieval.files import damage

        try:
            wrong = damage(folder)
        except OSError as error:
            wrong = str(error)
        if wrong is not None:
            self._warn(f"the copy of an index at {folder} is damaged and is copied again: {wrong}")
        return wrong is None

    def _pointer_file(self, app: str, index: str) -> Path:
        return (self._cache or Path()) / "pointers" / f"{app}.{index}.json"


class _Followed:
    """The newest state of an index. Reading it is plain; now and then it also starts a look for a newer one."""

    def __init__(
        self,
        first: OpenIndex,
        newest: Callable[[], OpenIndex],
        blocked: Callable[[str], str | None],
        refresh: float,
        warn: Callable[[str], None],
    ) -> None:
        self._now = first
        self._newest = newest
        self._blocked = blocked
        self._refused: str | None = None
        self._every = refresh
        self._looked = time.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self._warn = warn

    def current(self) -> OpenIndex:
        """Give the state to search now.

        Raises:
            BackendUnavailable: root has blocked it, and there is no newer one yet.
        """
        if self._looking is None and time.monotonic() - self._looked >= self._every:
            self._looking = asyncio.get_running_loop().create_task(self._look())
        if self._refused is not None:
            raise BackendUnavailable(
                "Root has blocked the documents that were served.",
                why=self._refused,
                fix="Build the index again, without what was wrong: bundlectl index build FILE",
            )
        return self._now

    async def _look(self) -> None:
        try:
            self._now = await asyncio.to_thread(self._newest)
            self._refused = None
        except BundlectlError as error:
            # What is served was verified; a newer state that cannot be had is told and tried again later.
            self._warn(f"a newer state of the index cannot be had: {error.what}")
            await self._check_unblocked()
        finally:
            self._looked = time.monotonic()
            self._looking = None

    async def _check_unblocked(self) -> None:
        """Stop serving what root has blocked since it was opened."""
        try:
            self._refused = await asyncio.to_thread(self._blocked, self._now.snapshot)
        except BundlectlError as error:
            self._warn(f"whether the index is blocked cannot be told: {error.what}")


def _put(file: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".tmp-", delete=False) as out:
            out.write(data)
        Path(out.name).replace(file)
    except OSError as error:
        raise BackendUnavailable(f"{file} cannot be written.", why=str(error)) from error


def _copy(origin: Path, kept: Path, index: str) -> None:
    """Copy a snapshot's tables, whole or not at all."""
    if not origin.is_dir():
        raise NotFound(
            f"The tables of index {index} are not at {origin}.",
            fix="Build the index again: bundlectl index build FILE. The same documents give the same snapshot.",
        )
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".tmp-"))
        try:
            shutil.copytree(origin, made / "tables")
            (made / "tables").replace(kept)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        if kept.is_dir():
            return  # another process copied the same tables first
        raise BackendUnavailable(f"The tables of index {index} cannot be copied to {kept}.", why=str(error)) from error
