"""Stand-ins for AWS: moto and ministack as real servers on 127.0.0.1, and a proxy that breaks calls on the wire.

    with served("moto") as aws:
        monkeypatch.setenv(**aws.environ) ...
        aws.bucket("registry")

No stand-in is faithful (DESIGN 14). Each server is started once in a run and stopped at its end.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

import boto3

STAND_INS = ("moto", "ministack")
REGION = "eu-central-1"


@dataclass(frozen=True)
class StandIn:
    """A running stand-in."""

    name: str
    url: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment variables by which boto3 finds it, and nothing else of this machine's AWS settings."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self, service: str, url: str | None = None) -> Any:
        """Give a plain boto3 client, for what tests do behind bundlectl's back."""
        return _client(service, url or self.url)

    def bucket(self, stem: str = "registry") -> str:
        """Make a bucket of its own, and give its name."""
        name = f"{stem}-{secrets.token_hex(4)}"
        self.client("s3").create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
        return name


@cache
def _client(service: str, url: str) -> Any:
    """Make one, once in a run: boto3 reads a service's description anew for each."""
    return boto3.session.Session().client(
        service,  # type: ignore[call-overload]
        endpoint_url=url,
        region_name=REGION,
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


@cache
def stand_in(name: Literal["moto", "ministack"]) -> StandIn:
    """Start a stand-in, once in a run."""
    port = _free_port()
    folder = tempfile.TemporaryDirectory(prefix=f"bundlectl-{name}-")
    log = Path(folder.name) / "log"
    url = f"http://127.0.0.1:{port}"
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "BUNDLECTL_"))}
    keep.pop("PYTHONWARNINGS", None)
    if name == "moto":
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        health = f"{url}/moto-api/data.json"
    else:
        command = [sys.executable, "-m", "ministack"]
        keep |= {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port), "IOT_MTLS_ENABLED": "0", "EDGE_PORT": str(port)}
        health = f"{url}/_ministack/health"
    keep |= {"HOME": folder.name, "TMPDIR": folder.name}
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env=keep, cwd=folder.name, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )

    def stop() -> None:
        # Its own group: ministack starts helpers.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        folder.cleanup()

    atexit.register(stop)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(health, timeout=5):
                return StandIn(name, url)
        except urllib.error.HTTPError:
            return StandIn(name, url)  # it answers
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{name} did not start:\n{log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


Deed = Literal["pass", "cut", "cut_before", "hold", "drip"] | int
"""``pass``; ``cut``: do it, then close without an answer; ``cut_before``: close before it is done; ``hold``: do it
and answer late; ``drip``: give the body piece by piece; a number: answer that status instead. See ``Fault``."""


@dataclass(frozen=True)
class Fault:
    """What the proxy does to one request."""

    deed: Deed = "pass"
    code: str = ""
    """With a status: the S3 error code of the answer."""
    after: bool = False
    """With a status: whether the request is done all the same."""
    seconds: float = 0.0
    """How long ``hold`` waits, and ``drip`` between two pieces."""


Script = Callable[[str, str, int], Fault]
"""Gives the fault of a request by its method, its path with query, and how many requests came before."""


@dataclass
class Proxy:
    """Stands before a stand-in and breaks what its script says, on the wire."""

    to: StandIn
    script: Script = lambda method, path, number: Fault()
    requests: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> Proxy:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_expect_100(self) -> bool:
                self.send_response_only(100)
                self.end_headers()
                return True

            def _serve(self) -> None:
                with proxy._lock:
                    number = len(proxy.requests)
                    proxy.requests.append((self.command, self.path))
                fault = proxy.script(self.command, self.path, number)
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                if fault.deed == "cut_before":
                    self._cut()
                    return
                status, headers, answer = 0, [], b""
                if not isinstance(fault.deed, int) or fault.after:
                    status, headers, answer = proxy._forward(self.command, self.path, self.headers, body)
                if fault.deed == "cut":
                    self._cut()
                    return
                if fault.deed == "hold":
                    time.sleep(fault.seconds)
                if isinstance(fault.deed, int):
                    status, headers = fault.deed, [("content-type", "application/xml")]
                    answer = f"<Error><Code>{fault.code}</Code><Message>in a test</Message></Error>".encode()
                    if "x-amz-target" in self.headers:  # Parameter Store and KMS speak JSON
                        headers = [("content-type", "application/x-amz-json-1.1")]
                        answer = json.dumps({"__type": fault.code, "message": "in a test"}).encode()
                try:
                    self._answer(status, headers, answer, fault.seconds if fault.deed == "drip" else None)
                except OSError:
                    self.close_connection = True  # the client did not wait

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

            def _cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _answer(self, status: int, headers: list[tuple[str, str]], answer: bytes, drip: float | None) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                        if name.lower() == "content-length" and self.command != "HEAD":
                            continue
                        self.send_header(name, value)
                if self.command != "HEAD" and status not in (204, 304):
                    self.send_header("content-length", str(len(answer)))
                self.end_headers()
                if self.command == "HEAD":
                    return
                if drip is None:
                    self.wfile.write(answer)
                    return
                step = max(1, len(answer) // 50)
                for at in range(0, len(answer), step):
                    self.wfile.write(answer[at : at + step])
                    time.sleep(drip)

        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _forward(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection("127.0.0.1", int(self.to.url.rpartition(":")[2]), timeout=30)
        try:
            kept = {k: v for k, v in headers.items() if k.lower() not in ("expect", "connection", "transfer-encoding")}
            connection.request(method, path, body=body, headers=kept)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()
