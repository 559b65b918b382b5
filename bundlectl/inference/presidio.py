"""Presidio's analyzer as an inspector, in processes that can be killed.

Its recognisers are backtracking patterns and language models: no text may hold up the server. A process that does not
answer in time is killed and another is started; what was asked meanwhile is not let through.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Final

from bundlectl.inference.inspection import Inspection, Side
from bundlectl.inference.provider import ProviderError
from bundlectl.model.components import PresidioCheck
from bundlectl.model.errors import BackendUnavailable, MissingExtra, UsageError
from bundlectl.model.types import seconds

WHAT: Final = "Presidio's process"
STARTUP: Final = 60.0
"""Seconds that a process may take to load its model."""
_MAX_LINE: Final = 16 * 1024 * 1024
_KEPT: Final = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
_KEPT_PREFIXES: Final = ("PYTHON", "LC_", "LD_")
"""What the process is told of the environment: it needs no credential, so it is given none."""

Place = tuple[str, str | None]
"""A language and a spaCy pipeline: what a process is started with."""


class PresidioProcesses:
    """The processes, one for each language and model, shared by all releases of a server."""

    def __init__(self, command: Sequence[str] = (sys.executable, "-m", "bundlectl.inference.presidio_worker")) -> None:
        """Take the command that is started, to which language and model are added."""
        self._command = tuple(command)
        self._workers: dict[Place, _Worker] = {}

    def inspector(self, check: PresidioCheck) -> PresidioInspector:
        """Give the inspector of one side of a profile; its process is started by ``ready``."""
        place = (check.language, check.model)
        worker = self._workers.get(place)
        if worker is None:
            worker = self._workers[place] = _Worker(self._command, place)
        return PresidioInspector(worker, check)

    async def close(self) -> None:
        """End every process."""
        for worker in self._workers.values():
            await worker.close()

    async def __aenter__(self) -> PresidioProcesses:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Worker:
    """One process: it is asked one thing at a time."""

    def __init__(self, command: Sequence[str], place: Place) -> None:
        self._command, self._place = command, place
        self._turn = asyncio.Lock()
        self._process: Process | None = None
        self._starting: asyncio.Task[frozenset[str]] | None = None
        self._asked = 0
        self._closed = False

    async def entities(self) -> frozenset[str]:
        """Give what it can find, once it runs."""
        if not self._runs():
            self._restart()
        if self._starting is None:
            raise ProviderError("unavailable", f"{WHAT} was closed.")
        return await asyncio.shield(self._starting)

    async def ask(self, question: Mapping[str, Any], timeout: float) -> Any:
        """Ask it. ``timeout`` in seconds holds for the turn, and again for the answer: without one it is killed."""
        try:
            async with asyncio.timeout(timeout):
                await self._turn.acquire()
        except TimeoutError as error:
            raise ProviderError("timeout", f"{WHAT} was busy for {timeout:g} s.") from error
        try:
            return await self._ask(question, timeout)
        finally:
            self._turn.release()

    async def _ask(self, question: Mapping[str, Any], timeout: float) -> Any:
        process = self._process
        if not self._runs() or process is None or process.stdin is None or process.stdout is None:
            self._restart()
            raise ProviderError("unavailable", f"{WHAT} does not run; it is being started.")
        self._asked += 1
        line = json.dumps({**question, "id": self._asked}).encode() + b"\n"
        try:
            async with asyncio.timeout(timeout):
                process.stdin.write(line)
                await process.stdin.drain()
                return await self._answer(process.stdout, self._asked)
        except TimeoutError as error:
            await self._kill(process)
            self._restart()
            raise ProviderError("timeout", f"{WHAT} did not answer within {timeout:g} s and was killed.") from error
        except (ConnectionError, ValueError) as error:
            await self._kill(process)
            self._restart()
            raise ProviderError("unavailable", f"{WHAT} ended.", why=type(error).__name__) from error

    def _restart(self) -> None:
        if not self._closed and (self._starting is None or self._starting.done()):
            self._starting = asyncio.create_task(self._start())
            self._starting.add_done_callback(_seen)

    async def close(self) -> None:
        """End the process, whatever it is at."""
        self._closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._process is not None:
            await self._kill(self._process)

    def _runs(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def _answer(self, answers: asyncio.StreamReader, asked: int) -> Any:
        while True:
            line = await answers.readline()
            if not line:
                raise ConnectionError("it ended")
            value = json.loads(line)
            # An earlier question may have been given up by its caller; its answer is not ours.
            if value.get("id") == asked:
                return value["found"]

    async def _start(self) -> frozenset[str]:
        language, model = self._place
        environ = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
        # The child is another program at once: what lancedb tells a fork of itself is of no use on our stderr.
        warnings.filterwarnings("ignore", "lancedb fork", RuntimeWarning)
        process = await asyncio.create_subprocess_exec(
            *self._command,
            language,
            *([model] if model else []),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,  # what a library logs may quote what it read
            limit=_MAX_LINE,
            env=environ,
        )
        try:
            async with asyncio.timeout(STARTUP):
                line = await process.stdout.readline() if process.stdout is not None else b""
            value = json.loads(line) if line else {}
        except (TimeoutError, ValueError) as error:
            await self._kill(process)
            raise BackendUnavailable(f"{WHAT} did not start.", why=type(error).__name__) from error
        except asyncio.CancelledError:
            await self._kill(process)
            raise
        if "ready" in value:
            self._process = process
            return frozenset(value["ready"])
        await self._kill(process)
        if value.get("failed") in ("ImportError", "ModuleNotFoundError"):
            raise MissingExtra("A profile with presidio", "presidio")
        if "failed" in value:
            raise UsageError(
                f"Presidio cannot be started with the language {language} and the model {model or 'none'}.",
                why=value.get("why", ""),
                fix=f"Install the spaCy pipeline {model}." if model else "Name a language that spaCy knows.",
            )
        raise BackendUnavailable(f"{WHAT} did not start.", why="it ended without a word")

    async def _kill(self, process: Process) -> None:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _seen(start: asyncio.Task[frozenset[str]]) -> None:
    """Take note of a start that failed: the next question finds that nothing runs, and says so."""
    if not start.cancelled():
        start.exception()


class PresidioInspector:
    """What one side of a profile asks of it."""

    name: Final = "presidio"

    def __init__(self, worker: _Worker, check: PresidioCheck) -> None:
        """Take the process and what to look for."""
        self._timeout = seconds(check.timeout)
        self._worker = worker
        self._check = check

    async def ready(self) -> None:
        """Start the process, and hold the entities against what it can find.

        Raises:
            MissingExtra: the extra ``presidio`` is not installed.
            UsageError: the pipeline is not installed, or an entity is none that can be found with it.
            BackendUnavailable: the process does not start.
        """
        known = await self._worker.entities()
        unknown = sorted(set(self._check.entities) - known)
        if unknown:
            raise UsageError(
                f"Presidio finds no {', '.join(unknown)} here.",
                why=f"Without other recognisers it finds {', '.join(sorted(known))}.",
                fix="Leave them out; people, places and organisations need a spaCy pipeline as the model.",
            )

    async def inspect(self, texts: Sequence[str], side: Side) -> Inspection:
        """Look for the entities; those of one text that overlap are redacted as one, under the surest one's name."""
        question = {"texts": list(texts), "entities": sorted(self._check.entities), "score": self._check.score}
        found = await self._worker.ask(question, self._timeout)
        counts: Counter[str] = Counter()
        actions = {self._check.entities[entity] for spans in found for _, _, entity, _ in spans}
        counts.update(f"presidio:{entity}" for spans in found for _, _, entity, _ in spans)
        if "block" in actions:
            return Inspection((), "block", dict(counts))
        if "redact" not in actions:
            return Inspection(tuple(texts), "flag" if actions else "pass", dict(counts))
        redacted = tuple(self._redacted(text, spans) for text, spans in zip(texts, found, strict=True))
        return Inspection(redacted, "redact", dict(counts))

    def _redacted(self, text: str, spans: Sequence[tuple[int, int, str, float]]) -> str:
        joined: list[tuple[int, int, str, float]] = []
        for start, end, entity, score in sorted(spans):
            if self._check.entities[entity] != "redact":
                continue
            if joined and start < joined[-1][1]:
                first = joined[-1]
                surest = entity if score > first[3] else first[2]
                joined[-1] = (first[0], max(end, first[1]), surest, max(score, first[3]))
            else:
                joined.append((start, end, entity, score))
        for start, end, entity, _ in reversed(joined):
            text = f"{text[:start]}[{entity}]{text[end:]}"
        return text
