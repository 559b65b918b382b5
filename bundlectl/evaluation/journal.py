"""The journal of a run: each finished case on disk at once, so that a run that was stopped goes on where it was.

One JSON Lines file per key in a folder; the key says what was measured by what: bundle, bindings, suite, dataset,
searched snapshots, chosen cases, tool version. Whoever runs the same again gets the finished cases; anything else
has a file of its own. A last line without its end was torn by a crash and is cut off; a line that is no result is
left out and its case runs again. The file is discarded once the result is kept somewhere better.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from bundlectl import __version__
from bundlectl.evaluation.report import CaseResult, Row
from bundlectl.evaluation.shelf import Shelf
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.canonical import canonical, digest, hex_of, parse_json
from bundlectl.model.errors import BackendUnavailable, Conflict, VerificationFailed


def journal_key(
    loaded: LoadedSuite,
    *,
    bundle: str,
    bindings: str,
    snapshots: Mapping[str, str] | None = None,
    beside: str | None = None,
    judges: str | None = None,
    signed: tuple[str, int] | None = None,
    tool_version: str = __version__,
) -> str:
    """Give the digest that names one measurement.

    Args:
        loaded: the suite, narrowed as it will be run.
        bundle: the bundle's digest.
        bindings: the digest of the bindings it runs with.
        snapshots: the resolved snapshot by index, where a bundle follows one that moves.
        beside: what it is measured beside, in a comparison.
        judges: digest of where the judges are reached that score.
        signed: who will sign, and which look at the bundle it is: nobody goes on from rows that were looked at
            unsigned.
        tool_version: the version whose scorers measure.
    """
    return digest(
        canonical(
            {
                **({"beside": beside} if beside is not None else {}),
                **({"judges": judges} if judges is not None else {}),
                **({"signed": list(signed)} if signed is not None else {}),
                "bundle": bundle,
                "bindings": bindings,
                "suite": loaded.suite_digest,
                "dataset": loaded.dataset_digest,
                "snapshots": dict(snapshots or {}),
                "cases": [case.id for case in loaded.chosen],
                "tool": tool_version,
            }
        )
    )


class Finished(Mapping[Row, CaseResult]):
    """Rows that an earlier run finished, by case and repeat."""

    def __init__(self) -> None:
        self._at: dict[Row, int] = {}
        self._rows = Shelf(CaseResult)

    def put(self, row: CaseResult) -> None:
        """Take a row; of one that is there twice the later counts."""
        self._at[row.row] = self._rows.add(row)

    def clear(self) -> None:
        """Forget all of them."""
        self._at.clear()

    def __getitem__(self, row: Row) -> CaseResult:
        return self._rows[self._at[row]]

    def __iter__(self) -> Iterator[Row]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class Journal:
    """The open journal of one key; a context manager. One process at a time.

    ``finished``: results of an earlier run by case and repeat, errors left out (they are tried again); what is added
    now is not among them.
    ``dropped``: how many lines were torn or no result.

    Raises:
        Conflict: another process runs the same evaluation.
        BackendUnavailable: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / f"{hex_of(key)}.jsonl"
        self.key = key
        self.finished = Finished()
        self.dropped = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unavailable(error) from error
        try:
            self._lock()
            self._load()
        except BaseException:
            os.close(self._descriptor)
            raise

    def add(self, result: CaseResult) -> None:
        """Write one finished case; it is with the operating system when this returns.

        Raises:
            BackendUnavailable: it cannot be written, e.g. the disk is full.
        """
        form = result.model_dump_json(by_alias=True, exclude_none=True)
        line = f'{{"key":"{self.key}","result":{form}}}\n'.encode()
        end = os.lseek(self._descriptor, 0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            # What was written of the line must not stand before the next one.
            os.ftruncate(self._descriptor, end)
            raise self._unavailable(error) from error

    def forget(self) -> None:
        """Begin anew: what an earlier run finished is gone, also for the run after this one.

        Raises:
            BackendUnavailable: it cannot be written.
        """
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError as error:
            raise self._unavailable(error) from error
        self.finished.clear()

    def discard(self) -> None:
        """Delete the journal: its results are kept elsewhere now. The next run measures everything anew."""
        self.path.unlink(missing_ok=True)
        self.finished.clear()

    def close(self) -> None:
        """Close the file and let go of it."""
        os.close(self._descriptor)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise Conflict(
                    "The same evaluation is running already.",
                    why=f"Another process holds {self.path}.",
                    fix="Wait for it, or stop it; what it has finished is kept.",
                ) from error
            raise self._unavailable(error) from error

    def _load(self) -> None:
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as file:
                file.seek(0)
                for line in file:
                    if line.endswith(b"\n"):
                        self._take(line)
                    else:
                        self.dropped += 1
                        os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - len(line))
        except OSError as error:
            raise self._unavailable(error) from error

    def _take(self, line: bytes) -> None:
        result = self._result(line)
        if result is None:
            self.dropped += 1
        elif result.error is None:
            self.finished.put(result)

    def _result(self, line: bytes) -> CaseResult | None:
        try:
            value = parse_json(line, what="a line of the journal")
            if not isinstance(value, dict) or value.get("key") != self.key:
                return None
            return CaseResult.model_validate(value.get("result"), by_alias=True, by_name=False)
        except (VerificationFailed, ValidationError):
            return None

    def _unavailable(self, error: OSError) -> BackendUnavailable:
        return BackendUnavailable(
            f"The journal {self.path} cannot be used.",
            why=error.strerror or str(error),
            fix="Make room or give it another folder; cases finished so far are kept.",
        )
