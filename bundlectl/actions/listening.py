"""Where a server listens, how it runs and how it ends: what serve and dev need of uvicorn beyond its own."""

from __future__ import annotations

import asyncio
import errno
import gc
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final

import uvicorn

from bundlectl.actions.connections import Connection
from bundlectl.model.errors import BackendUnavailable

IDLE_SECONDS: Final = 75
"""An idle connection is kept longer than load balancers keep theirs (60 s), so that none sends into a closed one."""
_BACKLOG: Final = 2048
"""Connections that wait to be accepted, as uvicorn has it."""
_OBJECTS: Final = 20_000
"""The collector looks for garbage once so many more objects were made than freed, not 700."""


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded, without listening yet: callers are refused until uvicorn does.

    Left to itself uvicorn ends the process with an exit code of its own where the address is taken.

    Args:
        host: a name or address, IPv4 or IPv6.
        port: 0 for any free one.

    Raises:
        BackendUnavailable: the address is taken, not of this machine, or may not be used.
    """
    try:
        [family, kind, protocol, _, address], *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        bound = socket.socket(family, kind, protocol)
        try:
            # As asyncio does: an address whose last connections have only just ended may be taken again.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
        return bound
    except OSError as error:
        raise _cannot_listen(f"{host}:{port}", error) from error


def listen(bound: socket.socket) -> None:
    """Let callers in. Several may have taken an address with :func:`bind` while nobody listened there; one gets it.

    Raises:
        BackendUnavailable: another process was faster.
    """
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        raise _cannot_listen(address_of(bound).removeprefix("http://"), error) from error


def _cannot_listen(where: str, error: OSError) -> BackendUnavailable:
    about_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
    port = "Choose another port with --port, or end the process that holds it."
    return BackendUnavailable(
        f"The server cannot listen on {where}.",
        why=error.strerror or str(error),
        fix=port if about_port else "Name an address of this machine with --host: 127.0.0.1, or 0.0.0.0 for all.",
    )


def address_of(listening: socket.socket) -> str:
    """Give the URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def configured(app: Any) -> uvicorn.Config:
    """Give uvicorn's settings for an application of ours.

    What was forwarded for whom is nothing that the server goes by, and its make is nobody's business.
    """
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        http=Connection,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=30,
    )


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a server to its end, on uvloop where there is one, with a garbage collector that looks less often.

    What is loaded by now, code above all, stays for good and is not looked through again. What a request makes is
    freed as it ends, without the collector; a tenth of its time went into looking.
    """
    loops: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    with suppress(ImportError):  # there is none for Windows
        from uvloop import new_event_loop as loops
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS, *before[1:])
    try:
        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(main)
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class Graceful(uvicorn.Server):
    """Ends on SIGINT and SIGTERM once what is under way is answered, and returns.

    uvicorn would then raise the signal again, which kills the process before its receipts are on the disk.
    """

    def __init__(self, config: uvicorn.Config, *, on_exit: Callable[[], None] = lambda: None) -> None:
        """Take what to tell as soon as the end is asked for."""
        super().__init__(config)
        self._on_exit = on_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen.

        Raises:
            BackendUnavailable: another process listens there by now.
        """
        for one in sockets or ():
            listen(one)
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._on_exit()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take both signals while serving."""
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
