"""Reading receipts: one by its id, or the newest. Any process may read while others write.

A line that is no receipt (a process was killed while writing it) is left out and reported to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.receipt import Receipt

MIN_PREFIX = 6

Damage = Callable[[Path, int], None]
"""Told the file and the line (from 1) of each damaged receipt that was met."""


def find(folder: Path, id_: str, *, on_damage: Damage | None = None) -> Receipt:
    """Give the receipt with this id, or the only one whose id begins so (6 characters or more).

    Raises:
        NotFound: there is none.
        UsageError: several begin so.
    """
    found: dict[str, Receipt] = {}
    needle = f'"id":"{id_}'.encode()
    for _, receipt in _receipts(folder, needle, on_damage):
        if receipt.id == id_:
            return receipt
        if len(id_) >= MIN_PREFIX and receipt.id.startswith(id_):
            found[receipt.id] = receipt
    if not found:
        raise NotFound(
            f"There is no receipt {id_}.",
            why=f"Receipts were looked for in {folder}.",
            fix="List the newest with: bundlectl receipts list",
        )
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} receipts begin with {id_}.", why=", ".join(sorted(found)[:5]), fix="Give more of the id."
        )
    return next(iter(found.values()))


def recent(
    folder: Path,
    count: int = 20,
    *,
    task: str | None = None,
    tenant: str | None = None,
    environment: str | None = None,
    bundle: str | None = None,
    keep: Callable[[Receipt], bool] | None = None,
    on_damage: Damage | None = None,
) -> list[Receipt]:
    """Give the newest receipts, newest first, of those that match every filter given.

    Whole days are read, newest first, until ``count`` are found. Receipts of one second keep the order in
    which one process wrote them.
    """
    found: list[Receipt] = []
    for day in _days(folder):
        of_day = [
            (receipt.time, place, receipt)
            for place, receipt in _receipts_of_day(day, b"", on_damage)
            if (task is None or receipt.task == task)
            and (tenant is None or receipt.tenant == tenant)
            and (environment is None or receipt.release.environment == environment)
            and (bundle is None or receipt.release.bundle == bundle)
            and (keep is None or keep(receipt))
        ]
        of_day.sort(key=lambda row: row[:2], reverse=True)
        found.extend(receipt for _, _, receipt in of_day)
        if len(found) >= count:
            break
    return found[:count]


def between(
    folder: Path,
    since: datetime | None,
    until: datetime | None,
    *,
    keep: Callable[[Receipt], bool],
    on_damage: Damage | None = None,
) -> Iterator[Receipt]:
    """Give the receipts from ``since`` (inclusive) to ``until`` (exclusive) that are to be kept, the oldest day first.

    Days outside of the span are not read; within a day, receipts come as their files have them.
    """
    for day in reversed(_days(folder)):
        date = day.name.removeprefix("date=")
        if (since is not None and date < since.astimezone(UTC).strftime("%Y-%m-%d")) or (
            until is not None and date > until.astimezone(UTC).strftime("%Y-%m-%d")
        ):
            continue
        for _, receipt in _receipts_of_day(day, b"", on_damage):
            inside = (since is None or since <= receipt.time) and (until is None or receipt.time < until)
            if inside and keep(receipt):
                yield receipt


def _days(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("date=*") if path.is_dir()), reverse=True)


def _receipts(folder: Path, needle: bytes, on_damage: Damage | None) -> Iterator[tuple[tuple[str, int], Receipt]]:
    for day in _days(folder):
        yield from _receipts_of_day(day, needle, on_damage)


def _receipts_of_day(day: Path, needle: bytes, on_damage: Damage | None) -> Iterator[tuple[tuple[str, int], Receipt]]:
    """Give (file name, line) and receipt of each line that holds ``needle``."""
    for path in sorted(day.glob("*.jsonl")):
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if needle not in line:
                    continue
                try:
                    receipt = Receipt.model_validate_json(line)
                except ValidationError:
                    if on_damage is not None:
                        on_damage(path, number)
                    continue
                yield (path.name, number), receipt
