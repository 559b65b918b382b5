"""The scorer python: code of one's own, in a process of its own.

A process is started when a run begins, is given each sample as a line of JSON, and is ended with the run. It is killed
when a case takes longer than the time limit; a new one takes the next case. Whatever goes wrong (an exception, a value
that is no number in [0, 1], a process that ends, a time limit) is an error of that row, and never a score. After 3
time limits, or 20 errors in a row that ended the process, the rest of the rows are errors without being tried.

The process does not see this one's environment, but for what Python needs and for the names in ``options.environment``.
It is no sandbox: the code comes with the suite, is reviewed like it, and runs as the user who evaluates.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import bundlectl
from bundlectl.evaluation.scorers.own_code import OwnCode, OwnOptions
from bundlectl.evaluation.scorers.score import Sample, Score, Weighed, failed
from bundlectl.model.errors import UsageError
from bundlectl.model.suite import Case

LOADING = 60.0
"""Seconds for loading the code, libraries that it imports among it."""

MOST_HANGS = 3
MOST_CRASHES = 20

_START = "import sys; sys.path.append(sys.argv[1]); from bundlectl.evaluation.scorers.own_worker import main; main()"
_NEEDED = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "TZ", "SYSTEMROOT")


class OwnScorer:
    """One line of a suite. Opened before a run, closed after it; used within one event loop.

    Without ``code`` it only says which cases it applies to.
    """

    def __init__(self, options: OwnOptions, code: OwnCode | None) -> None:
        self._options, self._code = options, code
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._hangs = self._crashes = 0

    @property
    def identity(self) -> Mapping[str, Any]:
        """The digest of the code."""
        return {"code": self._code.digest if self._code is not None else None}

    def applies(self, case: Case) -> bool:
        """Cases with one of the tags; all, where none are given."""
        return not self._options.tags or bool(set(self._options.tags) & set(case.tags))

    async def open(self) -> None:
        """Start the process and load the code.

        Raises:
            UsageError: it cannot be loaded; names file and line.
        """
        async with self._lock:
            wrong = await self._start()
            if wrong is not None:
                raise UsageError(
                    f"The scorer {self._known.shown} cannot be loaded.",
                    why=wrong,
                    fix="It may import what is installed beside bundlectl, but no file beside itself.",
                )

    async def close(self) -> None:
        """End the process."""
        async with self._lock:
            await self._end()

    async def weigh(self, sample: Sample) -> Weighed:
        """Score a sample."""
        # One at a time: the wait for another row's turn is not the scorer's time.
        async with self._lock:
            return Weighed(await self._score(sample))

    async def _score(self, sample: Sample) -> Score:
        if self._hangs >= MOST_HANGS:
            return failed(f"not tried: the scorer reached its time limit {self._hangs} times")
        if self._crashes >= MOST_CRASHES:
            return failed(f"not tried: the scorer broke {self._crashes} times in a row")
        if self._process is None:
            wrong = await self._start()
            if wrong is not None:
                return self._crashed(wrong)
        limit = self._options.timeout
        try:
            answer = await asyncio.wait_for(self._ask(_form(sample)), limit)
        except TimeoutError:
            self._hangs += 1
            await self._end()
            return failed(f"the scorer took longer than {limit:g} s, and was stopped")
        except asyncio.CancelledError:
            await self._end()  # or its late answer would be taken for the next row's
            raise
        if answer is None or "raised" in answer:
            await self._end()
            return self._crashed(answer["raised"] if answer else "its process ended")
        self._crashes = 0
        if "error" in answer:
            return failed(f"the scorer broke: {answer['error']}")
        try:
            return Score.model_validate(answer["score"])
        except ValidationError:
            return failed("the scorer gave a score that is none")

    def _crashed(self, why: str) -> Score:
        self._crashes += 1
        return failed(f"the scorer broke: {why}")

    async def _start(self) -> str | None:
        """Start a process; say what is wrong if the code cannot be loaded, and leave none."""
        code = self._known
        environment = {name: os.environ[name] for name in (*_NEEDED, *self._options.environment) if name in os.environ}
        root = str(Path(bundlectl.__file__).resolve().parents[1])
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-c", _START, root),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            start_new_session=True,  # so that what it starts is ended with it
        )
        loading = {
            "shown": code.shown,
            "source": code.source,
            "name": code.name,
            "settings": self._options.settings,
        }
        try:
            answer = await asyncio.wait_for(self._ask(loading), LOADING)
        except TimeoutError:
            await self._end()
            return f"loading took longer than {LOADING:g} s"
        if answer is not None and "loaded" in answer:
            return None
        await self._end()
        return str(answer["raised"]) if answer is not None else "its process ended while it was loaded"

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any] | None:
        """Send a line and read one; None when the process ended."""
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            return None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            await process.stdin.drain()
            line = await process.stdout.readline()
            answer = json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdin is not None:
            process.stdin.close()
        await process.wait()

    @property
    def _known(self) -> OwnCode:
        if self._code is None:
            raise ValueError("the code of this scorer was not read")
        return self._code


def _form(sample: Sample) -> dict[str, Any]:
    return {
        "case": sample.case.form(),
        "answer": sample.answer.form(),
        "receipt": sample.receipt.form(),
        "seconds": sample.seconds,
        "passages": [asdict(passage) for passage in sample.passages],
        "beside": sample.beside.form() if sample.beside is not None else None,
    }
