"""An index's tables in a registry that is no folder: the files of one snapshot, and a list of them that is put last.

They lie under ``apps/<app>/indexes/<index>/<snapshot hex>/`` as LanceDB lays them out, so that the address can also
be bound as it is. Whoever finds ``files.json`` finds all of them. What the tables say is believed only as far as
the signed snapshot lists it; the digests here tell damage, not forgery.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from pydantic import ValidationError

from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.documents import TABLES_LIST, TableFile, TableFiles
from bundlectl.model.errors import BackendUnavailable, Conflict, NotFound, UsageError, VerificationFailed
from bundlectl.model.types import wrong_fields
from bundlectl.registry.layout import index_folder
from bundlectl.registry.objects import put_immutable, read_or_none
from bundlectl.storage.parallel import in_parallel
from bundlectl.storage.store import MAX_OBJECT_BYTES, AlreadyThere, Store


def put_tables(store: Store, app: str, index: str, snapshot_hex: str, folder: Path) -> bool:
    """Store the tables in ``folder``, unless the same snapshot's are there whole; say whether they were stored.

    Raises:
        UsageError: a file is larger than a store takes.
        BackendUnavailable: they were not stored, or not all; repeating it is safe.
    """
    prefix = f"{index_folder(app, index)}/{snapshot_hex}"
    if _listed(store, prefix) is not None:
        return False
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / TABLES_LIST)
    large = next((path for path in paths if path.stat().st_size > MAX_OBJECT_BYTES), None)
    if large is not None:
        raise UsageError(
            f"{large.relative_to(folder)} of index {index} has {large.stat().st_size} bytes; a store takes "
            f"{MAX_OBJECT_BYTES}.",
            fix="Copy the tables to S3 yourself and bind their address: indexes: {" + index + ": s3://…}",
        )

    def put(path: Path) -> TableFile:
        data = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        _put_over(store, f"{prefix}/{name}", data)
        return TableFile(path=name, size=len(data), digest=digest(data))

    files = in_parallel(put, paths)
    try:
        put_immutable(store, f"{prefix}/{TABLES_LIST}", canonical(TableFiles(files=files).form()))
    except VerificationFailed as error:
        raise Conflict(
            f"Someone else stored the tables of index {index} at the same time.",
            why="An index has one writer.",
            fix=f"Delete {prefix}/{TABLES_LIST}, and build the index again.",
        ) from error
    return True


def fetch_tables(store: Store, app: str, index: str, snapshot_hex: str, into: Path) -> None:
    """Put the tables of a snapshot into ``into/<snapshot hex>``, whole or not at all; nothing to do if they are there.

    Raises:
        NotFound: the registry does not hold them.
        VerificationFailed: a file is damaged or missing.
        BackendUnavailable: they cannot be read, or not written here.
    """
    kept = into / snapshot_hex
    if kept.is_dir():
        return
    prefix = f"{index_folder(app, index)}/{snapshot_hex}"
    listed = _listed(store, prefix)
    if listed is None:
        raise NotFound(
            f"The tables of index {index} are not in the registry.",
            why=f"There is no {prefix}/{TABLES_LIST}.",
            fix="Build the index again: bundlectl index build FILE. The same documents give the same snapshot.",
        )
    try:
        into.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".tmp-", dir=into))
        try:
            in_parallel(lambda file: _fetch(store, prefix, file, made / "tables"), listed.files)
            (made / "tables" / TABLES_LIST).write_bytes(canonical(listed.form()))
            (made / "tables").replace(kept)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        if kept.is_dir():
            return  # another process fetched the same tables first
        raise BackendUnavailable(f"The tables of index {index} cannot be kept in {into}.", why=str(error)) from error


def _fetch(store: Store, prefix: str, file: TableFile, into: Path) -> None:
    data = read_or_none(store, f"{prefix}/{file.path}")
    if data is None or digest(data) != file.digest:
        raise VerificationFailed(
            f"{prefix}/{file.path} is {'missing' if data is None else 'damaged'}.",
            fix=f"Delete {prefix}/{TABLES_LIST}, and build the index again: bundlectl index build FILE.",
        )
    path = into / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _listed(store: Store, prefix: str) -> TableFiles | None:
    data = read_or_none(store, f"{prefix}/{TABLES_LIST}")
    if data is None:
        return None
    try:
        return TableFiles.model_validate(parse_json(data, what=f"{prefix}/{TABLES_LIST}"))
    except ValidationError as error:
        raise VerificationFailed(f"{prefix}/{TABLES_LIST} does not have its form.", why=wrong_fields(error)) from error


def _put_over(store: Store, key: str, data: bytes) -> None:
    """Put a file where a build that was cut off may have left another: nothing lists that one."""
    try:
        store.create(key, data)
    except AlreadyThere:
        there = store.get(key)
        if there.data != data:
            store.swap(key, data, there.tag)
