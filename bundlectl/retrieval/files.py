"""The list of an index's files: every file of the tables with its digest, beside them.

LanceDB finds damage in some of its files only, and a damaged full-text index simply finds less. The list tells
damage, not forgery: what is served is believed only as far as the signed snapshot lists it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.documents import TABLES_LIST, TableFile, TableFiles
from bundlectl.model.errors import VerificationFailed


def list_files(folder: Path) -> TableFiles:
    """List what is in the folder now; the list itself is left out."""
    return TableFiles(
        files=[
            TableFile(path=path.relative_to(folder).as_posix(), size=len(data), digest=digest(data))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path != folder / TABLES_LIST
            for data in [path.read_bytes()]
        ]
    )


def write_list(folder: Path) -> None:
    """Write the list of a folder's files, once they are all there."""
    (folder / TABLES_LIST).write_bytes(canonical(list_files(folder).form()))


def damage(folder: Path) -> str | None:
    """Say what is wrong with the files of a folder; None when they are those that were listed.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        data = (folder / TABLES_LIST).read_bytes()
    except FileNotFoundError:
        return f"There is no {TABLES_LIST}."
    try:
        listed = TableFiles.model_validate(parse_json(data, what=TABLES_LIST)).files
    except (ValidationError, VerificationFailed):
        return f"{TABLES_LIST} does not have its form."
    wanted = {file.path: file for file in listed}
    found = {file.path: file for file in list_files(folder).files}
    wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if not wrong:
        return None
    path = wrong[0]
    state = "missing" if path not in found else "not listed" if path not in wanted else "damaged"
    return f"{path} is {state}."
