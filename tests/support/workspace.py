"""A scaffolded app in a folder of its own, and the real command line run on it.

    work = Workspace.at(tmp_path)               # init, build, eval and index are done; nothing is live
    work.run("promote", ".", "--to", "dev", "--reason", "first")
    work.json("status")["environments"]

``run`` starts ``python -m bundlectl``. ``warm`` gives a process that has imported bundlectl and forks for each
command: a process of its own as well, in a tenth of the time, and one that can be struck by faults.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from bundlectl.actions.context import Context
from bundlectl.actions.promote import promote

ROOT = Path(__file__).resolve().parents[2]
APP = "hello"
ENVIRONMENTS = ("dev", "staging", "prod")


@dataclass(frozen=True)
class Ran:
    """What a command left behind. ``code`` is negative for the signal that ended it."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout as one JSON value."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The last JSON value on stderr; what stands before it is one JSON object a line, each a warning."""
        lines = self.err.splitlines()
        while lines and lines[0].startswith('{"warning"'):
            json.loads(lines.pop(0))
        return json.loads("\n".join(lines))


def environment(**extra: str) -> dict[str, str]:
    """Give the environment that commands run in: no terminal, no settings of the machine's owner."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("BUNDLECTL_")}
    return {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "LC_ALL": "C.UTF-8", **extra}


def spawn(folder: Path, *argv: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Start ``python -m bundlectl``."""
    settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "text": True, "env": environment()} | kwargs
    return subprocess.Popen([sys.executable, "-m", "bundlectl", *argv], cwd=folder, **settings)


class Workspace:
    """A folder made by ``bundlectl init``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def at(cls, folder: Path, *, live: bool = False) -> Workspace:
        """Copy the app that was initialised, built and evaluated; with ``live``, promoted to each environment."""
        made = folder / APP
        shutil.copytree(template(live=live), made, symlinks=True)
        return cls(made)

    @property
    def home(self) -> Path:
        """The folder of keys, pin and registry."""
        return self.folder / ".bundlectl"

    @property
    def registry(self) -> Path:
        """The registry's folder."""
        return self.home / "registry"

    def environment_folder(self, name: str) -> Path:
        """Where an environment's head and history are."""
        return self.registry / "apps" / APP / "environments" / name

    def head(self, name: str) -> Path:
        """The file of an environment's head."""
        return self.environment_folder(name) / "head.json"

    def run(self, *argv: str, code: int = 0, timeout: float = 60, env: Mapping[str, str] | None = None) -> Ran:
        """Run a command in a new process and expect an exit code."""
        done = subprocess.run(
            [sys.executable, "-m", "bundlectl", *argv],
            cwd=self.folder,
            env=environment(**(env or {})),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        return _expect(Ran(done.returncode, done.stdout, done.stderr), code, argv)

    def json(self, *argv: str, code: int = 0, env: Mapping[str, str] | None = None) -> Any:
        """Run a command with ``-o json`` and give its output, parsed."""
        ran = self.run(*argv, "-o", "json", code=code, env=env)
        return ran.json if ran.out else None

    def warm(
        self,
        *argv: str,
        code: int | None = 0,
        fault: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """Run a command in a process forked from one that has imported bundlectl; see ``tests.support.warm``."""
        return _expect(warm_process().ask(self.folder, argv, fault, env), code, argv)

    def quick(self, *argv: str, code: int = 0) -> Any:
        """Do as ``json`` does, by ``warm``."""
        ran = self.warm(*argv, "-o", "json", code=code)
        return ran.json if ran.out else None

    def here(self, *argv: str) -> Any:
        """Do as ``json`` does in this process: for what would spend its time on importing a search engine anew."""
        from typer.testing import CliRunner

        from bundlectl.cli.program import program

        before = Path.cwd()
        os.chdir(self.folder)
        try:
            done = CliRunner().invoke(program(argv[0]), [*argv, "-o", "json"], catch_exceptions=False)
        finally:
            os.chdir(before)
        return _expect(Ran(done.exit_code, done.stdout, done.stderr), 0, argv).json

    def context(self, *, clock: Callable[[], datetime] | None = None) -> Context:
        """Give a context for actions in this process."""
        return Context(
            registry_url=str(self.registry),
            clock=clock or (lambda: datetime.now(UTC)),
            new_id=lambda: secrets.token_hex(12),
            environ={},
        )

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace text in a source file; it must be there."""
        file = self.folder / name
        text = file.read_text(encoding="utf-8")
        assert old in text, f"{old!r} is not in {name}"
        file.write_text(text.replace(old, new), encoding="utf-8")

    def next_version(self, text: str = "and from nothing else at all") -> str:
        """Change the prompt, build and evaluate; give the new bundle's digest."""
        from bundlectl.actions.build import build
        from bundlectl.actions.evaluate import evaluate

        self.edit("prompts/answer.yaml", "and from nothing else", text)
        built = build(self.context(), self.folder)
        evaluate(self.context(), str(self.folder))
        return built.bundle

    def release(self, name: str, *, reason: str = "in a test") -> None:
        """Promote the source's bundle in this process."""
        promote(self.context(), str(self.folder), environment=name, reason=reason, confirmed=name)


def _expect(ran: Ran, code: int | None, argv: tuple[str, ...]) -> Ran:
    if code is not None and ran.code != code:
        raise AssertionError(f"{' '.join(argv)}\nexit {ran.code}, not {code}\n{ran.out}\n{ran.err}")
    return ran


@cache
def template(*, live: bool = False) -> Path:
    """Make the workspace that tests copy, once in a run."""
    folder = Path(tempfile.mkdtemp(prefix="bundlectl-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    work = Workspace(folder / APP)
    if live:
        shutil.copytree(template(), work.folder, symlinks=True)
        for name in ENVIRONMENTS:
            work.release(name, reason=f"first in {name}")
        return work.folder
    from bundlectl.actions.build import build
    from bundlectl.actions.evaluate import evaluate
    from bundlectl.actions.init import init

    init(work.context(), work.folder, app=APP)
    build(work.context(), work.folder)
    evaluate(work.context(), str(work.folder))
    return work.folder


class WarmProcess:
    """The process that forks commands; one command at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm"],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, folder: Path, argv: tuple[str, ...], fault: Mapping[str, Any] | None, env: Mapping[str, str] | None
    ) -> Ran:
        """Run one command."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"folder": str(folder), "argv": argv, "fault": dict(fault or {}), "env": dict(env or {})}
        with self._lock:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            return Ran(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=10)


@cache
def warm_process() -> WarmProcess:
    """Start the process that forks commands, once in a run."""
    process = WarmProcess()
    atexit.register(process.close)
    return process
