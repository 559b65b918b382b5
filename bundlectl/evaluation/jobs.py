"""The rows of a run: which are still to be asked, and which are there."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.shelf import Picked, Shelf
from bundlectl.model.suite import Case


@dataclass(frozen=True, slots=True)
class Job:
    """Rows to ask one after the other: of one side, or of both where their answers are scored beside each other."""

    sides: tuple[int, ...]
    case: Case
    repeat: int
    place: int


class Jobs:
    """The jobs of a run, each made when its turn comes: there may be a hundred thousand. ``next``: None at the end."""

    def __init__(self, jobs: Iterator[Job]) -> None:
        self._jobs = jobs
        self.next = next(jobs, None)

    def take(self) -> Job:
        """Give the next one, while there is one."""
        if self.next is None:
            raise IndexError("no job is left")
        job, self.next = self.next, next(self._jobs, None)
        return job


class Done:
    """The rows of one side as they come; ``places`` is how many there will be, in the dataset's order."""

    def __init__(self, places: int) -> None:
        self._rows = Shelf(CaseResult)
        self._at = array("q", [-1]) * places

    def put(self, place: int, row: CaseResult) -> None:
        """Take the row of a place."""
        self._at[place] = self._rows.add(row)

    def __contains__(self, place: int) -> bool:
        return self._at[place] >= 0

    def in_order(self) -> Sequence[CaseResult]:
        """Give the rows in the order of their places."""
        return Picked(self._rows, (at for at in self._at if at >= 0))
