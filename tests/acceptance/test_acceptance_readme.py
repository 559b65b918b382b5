"""The README's tour, typed as it is written in an empty folder."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.cli.commands import shell_lines
from tests.support.workspace import ROOT, environment

_TOUR = re.compile(r"^## A tour.*?(?=^## )", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


class Shell:
    """Types one line after the other; `cd` lasts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tools = folder / "bin"
        tools.mkdir()
        (tools / "bundlectl").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bundlectl "$@"\n')
        (tools / "bundlectl").chmod(0o755)
        self.environment = environment()
        self.environment["PATH"] = f"{tools}:{self.environment['PATH']}"

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line and expect exit code 0."""
        done = subprocess.run(
            ["bash", "-c", f'set -e\n{line}\npwd > "$OLD/where"'],
            cwd=self.folder,
            env={**self.environment, "OLD": str(self.folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        where = self.folder / "where"
        self.folder = Path(where.read_text().strip())
        where.unlink()
        return done

    def serve(self, line: str) -> None:
        """Start a server on a free port, see that it is ready, and end it with Ctrl-C."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = re.sub(r"--port \d+", f"--port {port}", line).split()
        process = subprocess.Popen(words, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 30
            while not _is_ready(port):
                assert process.poll() is None, line
                assert time.monotonic() < until, line
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, line
        finally:
            process.kill()
            process.wait()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def test_the_tour(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tour = _TOUR.search(text)
    assert tour is not None
    lines = [line for block in _BLOCK.findall(tour[0]) for line in shell_lines(block)]
    assert len(lines) > 12
    shell = Shell(tmp_path)
    answers: list[str] = []
    for line in lines:
        if " serve " in line:
            shell.serve(line)
            continue
        if "RECEIPT-BEFORE" in line:
            listed = shell.type("bundlectl receipts list -o json").stdout
            after, before = (item["id"] for item in json.loads(listed)["receipts"][:2])
            line = line.replace("RECEIPT-BEFORE", before).replace("RECEIPT-AFTER", after)
            explained = shell.type(line).stdout
            assert "documents" in explained
            continue
        done = shell.type(line)
        if " ask " in line:
            assert "receipt" in done.stderr
            answers.append(done.stdout)
    before, after = answers
    assert "30 days" in before
    assert "45 days" in after
    assert "verified: 3 releases" in done.stdout
