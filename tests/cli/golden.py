"""Golden files: what people read, kept word for word. ``UPDATE_GOLDEN=1 pytest tests/cli`` writes them anew."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))

_DIGEST = re.compile(r"(?<=sha256:)[0-9a-f]{8,64}")


def check(name: str, text: str) -> None:
    """Compare a text to its golden file."""
    file = FOLDER / f"{name}.txt"
    shown = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    if UPDATE:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(shown, encoding="utf-8")
    assert file.is_file(), f"there is no {file.name}: UPDATE_GOLDEN=1 pytest tests/cli writes it"
    assert shown == file.read_text(encoding="utf-8"), f"{file.name}: if it is meant, UPDATE_GOLDEN=1 pytest tests/cli"


def without_digests(text: str) -> str:
    """Put the same letter in place of each digest, at its length: keys are new in every run."""
    seen: dict[str, str] = {}
    return _DIGEST.sub(lambda found: seen.setdefault(found[0][:8], chr(97 + len(seen))) * len(found[0]), text)
