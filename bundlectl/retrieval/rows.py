"""Candidate rows as they come from the table, held as columns for scoring."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundlectl.retrieval.scoring import Floats


class Rows:
    """Rows of one or more fetches, each id once.

    ``repeated`` counts rows whose id came before in the same fetch: two searches may find one row, one search
    never finds it twice unless someone copied it.
    """

    def __init__(self, asked: Sequence[str]) -> None:
        self.asked = tuple(asked)
        self.ids: list[str] = []
        self.repeated = 0
        self._table: Any = None

    def add(self, fetched: Any) -> None:
        """Add the rows of an Arrow table that are not there yet; ``None`` adds nothing."""
        if fetched is None:
            return
        import pyarrow as pa

        known, seen = set(self.ids), set[str]()
        fresh: list[int] = []
        for row, id_ in enumerate(fetched["id"].to_pylist()):
            self.repeated += id_ in seen
            if id_ not in known and id_ not in seen:
                fresh.append(row)
                self.ids.append(id_)
            seen.add(id_)
        columns = [name for name in fetched.column_names if not name.startswith("_")]
        taken = fetched.select(columns).take(pa.array(fresh, pa.int64()))  # typed: an empty list has no type
        self._table = taken if self._table is None else pa.concat_tables([self._table, taken])

    def only(self, chosen: Sequence[int]) -> Rows:
        """Give some of the rows, in that order."""
        import pyarrow as pa

        made = Rows(self.asked)
        made.ids = [self.ids[row] for row in chosen]
        if self._table is not None:
            made._table = self._table.take(pa.array(list(chosen), pa.int64()))
        return made

    def form(self, row: int) -> bytes:
        """Give one row's chunk as it is stored, unverified."""
        return bytes(self._table["form"][row].as_py())

    @cached_property
    def counts(self) -> dict[str, Floats]:
        """How often each term of the question stands in each row."""
        import pyarrow.compute as pc

        return {
            term: pc.count_substring(self._table["terms"], f" {term} ").to_numpy().astype(np.float64)
            for term in self.asked
        }

    @cached_property
    def lengths(self) -> Floats:
        """Each row's number of terms."""
        return np.asarray(self._table["length"].to_numpy(), dtype=np.float64)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """Each row's vector. Only there when the rows were fetched with it."""
        flat = self._table["vector"].combine_chunks().flatten().to_numpy()
        return np.asarray(flat, dtype=np.float32).reshape(len(self.ids), -1)
