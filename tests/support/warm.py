"""A process that imports bundlectl once and forks for each command it is told, so that hundreds can be run.

A line of JSON in: ``folder``, ``argv``, ``env``, ``fault``. A line out: ``code``, ``out``, ``err``. The fault of a
command is one of

- ``{"kill_after_writes": n}``: SIGKILL once the store has done n writes (0: instead of the first);
- ``{"kill_at_call": n}``: SIGKILL just before the n-th call (from 0) that changes anything on the disk;
- ``{"full_at_call": n}``: that call and every later one that needs space fails with ENOSPC;
- ``{"largest_file": bytes}``: RLIMIT_FSIZE;
- ``{"lock_seconds": s}``: how long the store waits for a lock that another process holds.

What a command did to the disk by then is real, and so is its death.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import rich.table  # noqa: F401 - imported so that forks have it

from bundlectl.cli.program import program
from bundlectl.storage import directory, store
from bundlectl.storage.faults import Crash, FaultyStore

ACTIONS = ("ask", "attest", "bind", "build", "compare", "init", "promote", "receipts", "renew", "rollback")
PROGRAM = program()
# What needs no thread of its own, for none lives on in a fork: not lancedb, not a server.
IMPORTED = (
    *(f"bundlectl.actions.{name}" for name in (*ACTIONS, "show", "status", "transfer", "validate", "verify")),
    *("bundlectl.cli.session", "git", "rich.console", "rich.table", "rich.text"),
)


def strike(fault: dict[str, Any]) -> None:
    """Arrange a command's fault in this process."""
    match fault:
        case {"kill_after_writes": writes}:
            _crash_store(writes)
        case {"kill_at_call": number}:
            _count_calls(number, lambda _name, _call, *_a, **_k: os.kill(os.getpid(), signal.SIGKILL))
        case {"full_at_call": number}:
            _count_calls(number, _full)
        case {"largest_file": size}:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        case {"lock_seconds": seconds}:
            directory.DirectoryStore.__init__.__kwdefaults__["lock_seconds"] = seconds


def _crash_store(writes: int) -> None:
    opened = store.open_store

    def faulty(url: str) -> Any:
        struck = FaultyStore(opened(url))
        struck.crash_after(writes)
        return struck

    store.open_store = faulty  # type: ignore[assignment]


def _count_calls(number: int, act: Callable[..., Any]) -> None:
    """Let ``act`` stand in for the n-th call that changes the disk, and for every later one."""
    done = 0

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            if name == "open" and not args[1] & os.O_CREAT:
                return call(*args, **kwargs)
            done += 1
            return act(name, call, *args, **kwargs) if done > number else call(*args, **kwargs)

        return wrapped

    for name in ("open", "write", "fsync", "link", "rename", "unlink", "mkdir"):
        setattr(os, name, counted(name, getattr(os, name)))


def _full(name: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A disk without a free block: what needs none still works."""
    if name in ("unlink", "rename"):
        return call(*args, **kwargs)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def command(order: dict[str, Any], out: int, err: int) -> None:
    """Be the command: never returns."""
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, out), (2, err)):
        os.dup2(source, target)
    os.chdir(order["folder"])
    os.environ.update(order["env"])
    sys.argv = ["bundlectl", *order["argv"]]
    code = 1
    try:
        strike(order["fault"])
        PROGRAM(order["argv"])
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except Crash:
        os.kill(os.getpid(), signal.SIGKILL)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    """Fork for each line of stdin."""
    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                command(json.loads(line), out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        sys.stdout.write(json.dumps({"code": code, "out": texts[0], "err": texts[1]}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
