"""The scaffold of ``init``: a small app that validates, builds and evaluates as it is, written into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.model.types import STORE_NAME

_RENAMED = {"gitignore": ".gitignore"}
"""Packaged under names that mean nothing to the tools that package them."""


def write_scaffold(target: Path, app: str) -> list[Path]:
    """Write the scaffold, with the app's name filled in.

    Args:
        target: the folder; made if it does not exist.
        app: the app's name.

    Returns:
        the files written, sorted.

    Raises:
        UsageError: the name is no app name, or one of the files is there already; then nothing is written.
        BackendUnavailable: the folder cannot be written.
    """
    if STORE_NAME.fullmatch(app) is None:
        raise UsageError(
            f"{app!r} is no app name.",
            fix="Use lower-case letters, digits and -, at most 40, starting with a letter or digit.",
        )
    wanted = {target / path: content for path, content in scaffold_files(app)}
    there = sorted(path for path in wanted if path.is_symlink() or path.exists())
    if there:
        shown = ", ".join(str(path) for path in there[:5]) + (", …" if len(there) > 5 else "")
        raise UsageError(
            f"{target} already holds what would be written: {shown}.",
            fix="Choose another folder; init overwrites nothing.",
        )
    try:
        for path, content in wanted.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            # "x": what appeared since the look above is not overwritten either.
            with path.open("x", encoding="utf-8", newline="\n") as file:
                file.write(content)
    except OSError as error:
        raise BackendUnavailable(
            f"{error.filename or target} cannot be written.",
            why=error.strerror or str(error),
            fix="Check the folder's permissions and free space, then run init in an empty folder.",
        ) from error
    return sorted(wanted)


def scaffold_files(app: str) -> Iterator[tuple[str, str]]:
    """Give each file's relative path and its text for an app."""
    root = files("bundlectl") / "scaffold"
    for path, node in _walk(root, ""):
        folder, _, name = path.rpartition("/")
        renamed = _RENAMED.get(name, name.replace("APP", app))
        yield (f"{folder}/{renamed}" if folder else renamed), node.read_text("utf-8").replace("{app}", app)


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for node in sorted(folder.iterdir(), key=lambda child: child.name):
        path = f"{prefix}{node.name}"
        if node.is_dir():
            yield from _walk(node, path + "/")
        else:
            yield path, node
