"""Other gateways beside the router, each in an environment of its own: ``PEERS=1 python -m tests.benchmarks``.

LiteLLM's proxy and Portkey's gateway over HTTP, with the same model server, connections and processors as the router;
TensorZero's embedded gateway called from Python, against ``router.answer()`` in a process of its own. They pass chat
completions on and do less: no access rules, guards or receipts. Without ``PEERS=1`` nothing is measured. The
environments are made once, by ``uv`` and ``npm``, under ``BENCH_PEERS`` (default: ~/.cache/bundlectl-peers).
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import uvloop

from tests.benchmarks.answer_in_process import ROOT
from tests.benchmarks.http_raw import call
from tests.benchmarks.measure import Effort, Result, paired
from tests.benchmarks.router_over_http import CONNECTIONS, Process, requests, started

CACHE = Path(os.environ.get("BENCH_PEERS", "~/.cache/bundlectl-peers")).expanduser()
KEY = "sk-of-the-bench"
PATIENCE = 120.0
LITELLM = """\
model_list:
  - model_name: small
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "{url}", api_key: none}}
"""


def peers(effort: Effort) -> list[Result]:
    if os.environ.get("PEERS") != "1":
        return []
    here = sorted(os.sched_getaffinity(0))
    server, rest = ({here[0]}, set(here[1:])) if len(here) > 1 else (set(here), set(here))
    with ExitStack() as stack:
        stack.callback(os.sched_setaffinity, 0, here)
        os.sched_setaffinity(0, rest)
        models = stack.enter_context(started("tests.benchmarks.http_raw", processors=rest))
        url = f"http://127.0.0.1:{models.port}/v1"
        return [*_over_http(effort, url, server, stack), *_in_process(effort, url, server)]


def _over_http(effort: Effort, url: str, processors: set[int], stack: ExitStack) -> list[Result]:
    ours, bare = (
        stack.enter_context(started("tests.benchmarks.http_server", which, url, processors=processors))
        for which in ("ours", "bare")
    )
    results = []
    for name, begin, headers in (
        ("LiteLLM's proxy", _litellm, {"authorization": f"Bearer {KEY}"}),
        (
            "Portkey's gateway",
            _portkey,
            {"authorization": "Bearer none", "x-portkey-provider": "openai", "x-portkey-custom-host": url},
        ),
    ):
        with begin(url, processors) as peer:
            chats = [_chat(n, headers) for n in range(500)]
            _wait_for(peer.port, chats[0])
            turns = []
            for turn in range(effort.of(4, 12)):
                found = [_measured(ours, requests()), _measured(peer, chats), _measured(bare, requests())]
                if turn:
                    turns.append(found)
        shares = sorted(theirs[0] / passed[0] for _, theirs, passed in turns)
        note = f"its share of a bare pass-through's requests in the same run: {shares[len(shares) // 2]:.3f}"
        beside = f"router over HTTP beside {name}"
        results += [
            paired(f"{beside}, requests", "1/s", note, [(t[0][0], t[1][0]) for t in turns]),
            paired(f"{beside}, server CPU", "µs/request", "lower is better", [(t[0][1], t[1][1]) for t in turns]),
        ]
    return results


def _in_process(effort: Effort, url: str, processors: set[int]) -> list[Result]:
    theirs = _environment("tensorzero", "tensorzero") / "bin" / "python"
    script = Path(__file__).with_name("peer_tensorzero.py")
    arguments = [url, str(effort.of(2, 10)), str(CONNECTIONS)]
    pairs = []
    for _ in range(effort.of(4, 12)):
        ours = _printed([sys.executable, "-m", "tests.benchmarks.peer_router", *arguments], processors)
        pairs.append((ours, _printed([str(theirs), str(script), *arguments], processors)))
    note = f"{CONNECTIONS} at once over the fake model server, on one processor; hoped for: "
    beside = "router.answer() beside TensorZero embedded"
    return [
        paired(f"{beside}, answers", "1/s", note + ">= 1", [(a[0], b[0]) for a, b in pairs]),
        paired(f"{beside}, CPU", "µs/request", note + "<= 1", [(a[1], b[1]) for a, b in pairs]),
    ]


def _printed(command: list[str], processors: set[int]) -> tuple[float, float]:
    """Run a command on these processors and give the two numbers on its last line."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=PATIENCE,
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
    )
    first, second = done.stdout.strip().splitlines()[-1].split()
    return float(first), float(second)


def _measured(process: Process, sent: list[bytes]) -> tuple[float, float]:
    """Give requests a second, and microseconds of the server's time for each."""
    before = process.cpu()
    done, took = uvloop.run(call(process.port, sent, 1.0, CONNECTIONS))
    return done / took, (process.cpu() - before) / done * 1e6


def _chat(number: int, headers: Mapping[str, str]) -> bytes:
    question = f"How do I promote release {number} of the support app to production?"
    body = json.dumps({"model": "small", "messages": [{"role": "user", "content": question}]}).encode()
    lines = {"host": "127.0.0.1", "content-type": "application/json", "content-length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


def _wait_for(port: int, chat: bytes) -> None:
    """Wait until a gateway answers."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.connect()
            connection.sock.sendall(chat)
            if connection.sock.recv(100).startswith(b"HTTP/1.1 200"):
                return
        except OSError:
            pass
        finally:
            connection.close()
        if time.monotonic() > until:
            raise RuntimeError(f"the gateway on port {port} does not answer")
        time.sleep(0.2)


@contextmanager
def _litellm(url: str, processors: set[int]) -> Iterator[Process]:
    binary = _environment("litellm", "litellm[proxy]") / "bin" / "litellm"
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "litellm.yaml"
        config.write_text(LITELLM.format(url=url))
        environ = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": KEY, "LITELLM_LOG": "ERROR"}

        def command(port: int) -> list[str]:
            return [str(binary), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]

        with _running(command, processors, environ) as process:
            yield process


@contextmanager
def _portkey(_: str, processors: set[int]) -> Iterator[Process]:
    folder = CACHE / "portkey"
    script = folder / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not script.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, "@portkey-ai/gateway"], check=True)
    with _running(lambda port: ["node", str(script), f"--port={port}", "--headless"], processors, {}) as process:
        yield process


@contextmanager
def _running(
    command: Callable[[int], list[str]], processors: set[int], environ: Mapping[str, str]
) -> Iterator[Process]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(
        command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environ}
    ) as process:
        os.sched_setaffinity(process.pid, processors)
        try:
            yield Process(port, process.pid)
        finally:
            process.terminate()


def _environment(name: str, package: str) -> Path:
    """Give a peer's own Python environment, made when it is not there."""
    folder = CACHE / name
    if not (folder / "bin" / "python").exists():
        subprocess.run(["uv", "venv", "--quiet", folder], check=True)
        subprocess.run(["uv", "pip", "install", "--quiet", "--python", folder / "bin" / "python", package], check=True)
    return folder
