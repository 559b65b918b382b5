"""A real ``bundlectl serve`` and a small client for it."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.support.workspace import APP, Workspace, environment, spawn

REQUEST = {
    "task": "answer_question",
    "tenant_id": "acme",
    "user_role": "customer",
    "data_scope": ["help_center"],
    "policy_profile": "pii_safe",
    "input": {"question": "Within how many days can I return an unused item?"},
}


_LISTENING = re.compile(r"listening on http://\S+:(\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class Reply:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


class Serving:
    """A server process; ``lines`` is what it said on stderr so far."""

    def __init__(self, work: Workspace, *argv: str, env: Mapping[str, str] | None = None) -> None:
        own = environment(**(env or {}))
        self.process = spawn(work.folder, "serve", *argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=own)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return "\n".join(self.lines)

    def port(self) -> int:
        """Wait until it listens."""
        wait_for(lambda: _LISTENING.search(self.said) is not None or self.process.poll() is not None, 30)
        found = _LISTENING.search(self.said)
        assert found is not None, self.said
        return int(found[1])

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end and give the exit code."""
        code = self.process.wait(timeout)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def stop(self) -> int:
        """Ask it to end as an orchestrator does."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait()


@contextmanager
def serving(
    work: Workspace, name: str = "prod", *argv: str, env: Mapping[str, str] | None = None
) -> Iterator[tuple[Serving, Client]]:
    """Serve an environment on any free port of loopback, looking at the registry five times a second."""
    server = Serving(work, f"{APP}:{name}", "--port", "0", "--poll", "0.2", *argv, env=env)
    try:
        yield server, Client(server.port())
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()


class Client:
    """Sends requests, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read().decode())
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        """GET."""
        return self.send("GET", path)

    def ask(self, headers: Mapping[str, str] | None = None, **changes: Any) -> Reply:
        """Send the contract's request, with fields changed."""
        body = json.dumps({**REQUEST, **changes}).encode()
        return self.send("POST", "/v1/requests", body, {"content-type": "application/json", **(headers or {})})

    def serial(self) -> int:
        """The serial that is served now."""
        return int(self.get("/v1/releases").json["releases"][0]["release"]["serial"])


def wait_for(done: Callable[[], bool], seconds: float, say: Callable[[], str] = lambda: "") -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not done():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds:g} s: {say()}")
        time.sleep(0.02)
