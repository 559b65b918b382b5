"""Sequences that may hold a hundred thousand cases or rows and take no memory for most of them."""

from __future__ import annotations

import os
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar, overload

from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.types import Strict

HELD = 1000
"""Values that are kept as they are: what most datasets have, so that those are never read back."""

StrictT = TypeVar("StrictT", bound=Strict)
ValueT = TypeVar("ValueT")


class _Equal(Sequence[ValueT]):
    """Equal to whatever sequence has the same values; not hashable, as no list is."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(ours == theirs for ours, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class Shelf(_Equal[StrictT], Generic[StrictT]):
    """Values of one kind, in the order they were put there; they are only ever added.

    The first :data:`HELD` are kept as they are. The rest are JSON in a temporary file that has no name, and each is
    made anew when it is read: 8 bytes of memory for each.
    """

    def __init__(self, kind: type[StrictT], values: Iterable[StrictT] = ()) -> None:
        self._kind = kind
        self._held: list[StrictT] = []
        self._ends = array("Q", [0])
        self._descriptor = -1
        for value in values:
            self.add(value)

    def add(self, value: StrictT) -> int:
        """Put a value at the end and give its position.

        Raises:
            BackendUnavailable: the temporary file cannot be written, e.g. the disk is full.
        """
        if len(self._held) < HELD:
            self._held.append(value)
            return len(self._held) - 1
        end = self._ends[-1]
        data = memoryview(value.model_dump_json(by_alias=True).encode())
        try:
            if self._descriptor < 0:
                self._open()
            while data:
                written = os.pwrite(self._descriptor, data, end)
                data, end = data[written:], end + written
        except OSError as error:
            raise _unavailable(error) from error
        self._ends.append(end)
        return len(self) - 1

    def __len__(self) -> int:
        return len(self._held) + len(self._ends) - 1

    @overload
    def __getitem__(self, at: int) -> StrictT: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[StrictT]: ...
    def __getitem__(self, at: int | slice) -> StrictT | Sequence[StrictT]:
        if isinstance(at, slice):
            return Picked(self, range(len(self))[at])
        if 0 <= at < len(self._held):
            return self._held[at]
        position = range(len(self))[at]
        if position < len(self._held):
            return self._held[position]
        start, end = self._ends[position - len(self._held)], self._ends[position - len(self._held) + 1]
        try:
            data = os.pread(self._descriptor, end - start, start)
        except OSError as error:
            raise _unavailable(error) from error
        return self._kind.model_validate_json(data, by_alias=True, by_name=False)

    def __iter__(self) -> Iterator[StrictT]:
        yield from self._held
        for position in range(len(self._held), len(self)):
            yield self[position]

    def _open(self) -> None:
        with tempfile.TemporaryFile() as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)


class Picked(_Equal[ValueT], Generic[ValueT]):
    """Some values of a sequence, by their positions in it."""

    def __init__(self, values: Sequence[ValueT], positions: Iterable[int]) -> None:
        self._values = values
        self._positions: Sequence[int] = positions if isinstance(positions, range) else array("Q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, at: int) -> ValueT: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[ValueT]: ...
    def __getitem__(self, at: int | slice) -> ValueT | Sequence[ValueT]:
        if isinstance(at, slice):
            return Picked(self._values, self._positions[at])
        return self._values[self._positions[at]]

    def __iter__(self) -> Iterator[ValueT]:
        return (self._values[position] for position in self._positions)


def _unavailable(error: OSError) -> BackendUnavailable:
    return BackendUnavailable(
        f"The temporary file of a large evaluation cannot be used ({tempfile.gettempdir()}).",
        why=error.strerror or str(error),
        fix="Make room there, or name another folder with TMPDIR.",
    )
