"""dev: edit, save, see the answer and the scores. Unsigned, unreleased, on this machine only."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from bundlectl.actions.ask import request_for
from bundlectl.actions.context import Context
from bundlectl.actions.listening import address_of, bind, listen
from bundlectl.actions.routing import Discarded, input_key, unreleased
from bundlectl.bundling.build import build
from bundlectl.bundling.documents import load_document
from bundlectl.bundling.source import read_source
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.suite import read_suite
from bundlectl.inference.client import HttpClient
from bundlectl.inference.embeddings import Embedder, open_embedder
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.components import Retrieval
from bundlectl.model.contract import Answer
from bundlectl.model.documents import IndexSource
from bundlectl.model.errors import BundlectlError, NotFound, UsageError, VerificationFailed
from bundlectl.model.receipt import Receipt
from bundlectl.retrieval.documents import included_files, read_documents
from bundlectl.retrieval.index import build_index, open_index, snapshot_digest
from bundlectl.router.assemble import Compiled, OpenIndex, World, assemble
from bundlectl.router.identity import LOCAL
from bundlectl.router.router import Router
from bundlectl.router.served import Served
from bundlectl.router.server import Server

LOOK_EVERY = 0.4


class Show(Protocol):
    """Where dev tells what it sees."""

    def saved(self, bundle: str, app: str) -> None:
        """Tell that a save validates and answers from now on."""

    def wrong(self, error: BundlectlError) -> None:
        """Tell what is wrong with a save or a question; the last good save goes on."""

    def answered(self, question: str, answer: Answer, receipt: Receipt) -> None:
        """Tell an answer."""

    def scored(self, result: EvaluationResult, before: EvaluationResult | None) -> None:
        """Tell the scores; ``before`` is what the save before scored."""

    def listening(self, url: str) -> None:
        """Tell where the newest save answers over HTTP."""


@dataclass(frozen=True)
class Settings:
    """What dev does at every save."""

    questions: Sequence[str]
    tenant: str
    role: str
    suite: Path | None
    environment: str
    once: bool
    port: int | None


def dev(ctx: Context, path: Path, settings: Settings, show: Show) -> None:
    """Answer from a source folder's newest save until interrupted.

    Documents are indexed from the source's ``indexes/`` as they are on disk; no registry is needed.

    Raises:
        SourceError: with ``once``: the source does not validate.
        BackendUnavailable: the port is taken.
        UsageError: an index has no source file.
    """
    asyncio.run(_Loop(ctx, path, settings, show).run())


class _Loop:
    def __init__(self, ctx: Context, path: Path, settings: Settings, show: Show) -> None:
        self._ctx = ctx
        self._root = path if path.is_dir() else path.parent
        self._path = path
        self._settings = settings
        self._show = show
        self._watched: list[Path] = []
        self._indexed: dict[Path, IndexSource] = {}
        self._current: tuple[str, Bundle, Compiled] | None = None
        self._scores: EvaluationResult | None = None

    async def run(self) -> None:
        """Load, answer, and go on at every save and every typed question."""
        http = HttpClient()
        self._world = World(
            open_index=self._index,
            make_embedder=open_embedder,
            http=http,
            environ=self._ctx.environ,
            input_key=input_key(self._ctx),
        )
        self._router = Router(self._compiled, Discarded(), self._ctx.clock, self._ctx.new_id)
        try:
            if self._settings.once:
                await self._load()
                await self._work()
                return
            await self._follow()
        finally:
            await http.close()

    async def _follow(self) -> None:
        port = self._settings.port
        serving = asyncio.create_task(self._serve(bind("127.0.0.1", port))) if port is not None else None
        typed = asyncio.create_task(self._typed())
        try:
            async for _ in self._saves():
                try:
                    await self._load()
                    await self._work()
                except BundlectlError as error:
                    self._show.wrong(error)
        finally:
            for task in (serving, typed):
                if task is not None:
                    task.cancel()

    async def _saves(self) -> AsyncIterator[None]:
        seen: dict[str, tuple[int, int]] | None = None
        while True:
            now = await asyncio.to_thread(self._stamp)
            if now != seen:
                seen = now
                watched = set(self._watched)
                yield
                # Documents that this save was the first to name are no change of their own.
                fresh = {str(file) for file in self._watched} - {str(file) for file in watched}
                found = await asyncio.to_thread(self._stamp)
                seen = {**{name: found[name] for name in fresh if name in found}, **seen}
            await asyncio.sleep(LOOK_EVERY)

    def _stamp(self) -> dict[str, tuple[int, int]]:
        """Give size and time of every file that the answer depends on, by name."""
        files = [file for file in self._root.rglob("*") if ".bundlectl" not in file.parts]
        suite = self._settings.suite
        beside = list(suite.parent.glob("*")) if suite is not None else []
        found = {}
        included = [path for at, source in self._indexed.items() for path in included_files(source, at)]
        for file in {*files, *self._watched, *beside, *included}:
            try:
                stat = file.stat()
            except OSError:
                continue  # removed since it was listed: its absence is the change
            found[str(file)] = (stat.st_size, stat.st_mtime_ns)
        return found

    async def _load(self) -> None:
        source = await asyncio.to_thread(read_source, self._path)
        bundle = build(source)
        bindings = source.bindings.get(self._settings.environment, Bindings())
        compiled = await assemble(bundle, bindings, unreleased(source.app, bundle, bindings), self._world)
        self._current = (source.app, bundle, compiled)
        self._show.saved(bundle.digest, source.app)

    async def _work(self) -> None:
        for question in self._settings.questions:
            await self._ask(question)
        if self._settings.suite is not None:
            await self._measure(self._settings.suite)

    async def _ask(self, question: str) -> None:
        _, bundle, _ = self._loaded()
        request = request_for(
            bundle,
            question,
            task=None,
            tenant=self._settings.tenant,
            role=self._settings.role,
            scopes=(),
            profile=None,
        )
        outcome = await self._router.handle(request, LOCAL)
        if outcome.answer is None:
            raise outcome.error or BundlectlError("Nothing could answer.")
        self._show.answered(question, outcome.answer, outcome.receipt)

    async def _measure(self, file: Path) -> None:
        _, bundle, compiled = self._loaded()
        loaded = await asyncio.to_thread(read_suite, file)
        task = bundle.components.application.tasks.get(loaded.suite.task)
        if task is None:
            raise UsageError(f"The bundle has no task {loaded.suite.task!r}, which {file} measures.")
        started = self._ctx.clock()
        results = await run(
            loaded,
            self._router,
            identity=LOCAL,
            profile=task.profiles[0],
            output=bundle.components.output.get(loaded.suite.task),
            clock=self._ctx.clock,
        )
        result = summarise(
            loaded,
            results,
            bindings=compiled.ref.bindings,
            actor="unsigned",
            started=started,
            finished=self._ctx.clock(),
        )
        self._show.scored(result, self._scores)
        self._scores = result

    async def _typed(self) -> None:
        """Ask each line that a person types."""
        if not sys.stdin.isatty():
            return
        lines: asyncio.Queue[str] = asyncio.Queue()
        loop, terminal = asyncio.get_running_loop(), sys.stdin.fileno()

        def read() -> None:
            typed = os.read(terminal, 65_536)  # a terminal is readable when there is a whole line
            if not typed:
                loop.remove_reader(terminal)
            for line in typed.decode("utf-8", "replace").splitlines():
                lines.put_nowait(line)

        # No thread reads: leaving would have to wait for a line that nobody types.
        loop.add_reader(terminal, read)
        while True:
            line = await lines.get()
            if line.strip():
                try:
                    await self._ask(line.strip())
                except BundlectlError as error:
                    self._show.wrong(error)

    async def _serve(self, listening: socket.socket) -> None:
        import uvicorn

        served = Served("dev", self._settings.environment, self._compiled, self._router)
        listen(listening)
        self._show.listening(address_of(listening))
        await uvicorn.Server(uvicorn.Config(Server([served]), log_level="warning", lifespan="off")).serve([listening])

    def _loaded(self) -> tuple[str, Bundle, Compiled]:
        if self._current is None:
            raise VerificationFailed("No save has validated yet.", fix="Correct the source; the errors above say how.")
        return self._current

    def _compiled(self) -> Compiled:
        return self._loaded()[2]

    async def _index(self, app: str, retrieval: Retrieval, address: str | None, embedder: Embedder | None) -> OpenIndex:
        return await asyncio.to_thread(self._index_now, retrieval, embedder)

    def _index_now(self, retrieval: Retrieval, embedder: Embedder | None) -> OpenIndex:
        """Index the documents as they are on disk now, whatever the bundle pins."""
        file = self._root / "indexes" / f"{retrieval.index}.yaml"
        if not file.is_file():
            raise NotFound(f"The index {retrieval.index!r} has no source file.", fix=f"Write {file}")
        source = load_document(file, IndexSource)
        documents = read_documents(source, file)
        base = (file.parent / source.base).resolve()
        # Of every index: a bundle may search more than one. A file that is gone is passed over when it is looked at.
        self._watched = sorted({*self._watched, *(base / document.key for document in documents)})
        self._indexed = {**self._indexed, file: source}  # the watcher may be reading it in its thread
        folder = self._ctx.workspace / "dev" / "indexes"
        snapshot = build_index(
            source.index,
            documents,
            chunking=source.chunking,
            embedding=source.embedding,
            embedder=embedder or open_embedder(source.embedding),
            folder=folder,
        )
        checked: datetime = self._ctx.clock()
        opened = open_index(folder, snapshot, embedder)
        return OpenIndex(searcher=opened, snapshot=snapshot_digest(snapshot), following=True, checked=checked)
