"""Sources to break: copies of the fixtures, edits by text, and the problems that reading them gives."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bundlectl.bundling.source import read_source
from bundlectl.model.errors import Problem, SourceError

FIXTURES = Path(__file__).parent / "fixtures"


def fixture(name: str, folder: Path) -> Path:
    """Copy a fixture bundle into ``folder/<name>`` and give that path."""
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def edit(root: Path, file: str, old: str, new: str) -> int:
    """Replace the one occurrence of ``old`` and give the line at which ``new`` now starts."""
    path = root / file
    text = path.read_text("utf-8")
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
    path.write_text(text.replace(old, new), "utf-8")
    return text[: text.index(old)].count("\n") + 1


def problems(root: Path) -> list[Problem]:
    """Read a source that must be refused."""
    with pytest.raises(SourceError) as caught:
        read_source(root)
    assert caught.value.exit_code == 2
    return caught.value.problems


def only(root: Path, file: str, line: int, *words: str) -> Problem:
    """Assert that reading gives exactly one problem, there, and that it says these words."""
    found = problems(root)
    assert len(found) == 1, "\n".join(map(str, found))
    assert found[0].file == str(root / file), str(found[0])
    assert found[0].line == line, str(found[0])
    for word in words:
        assert word in str(found[0]), str(found[0])
    return found[0]
