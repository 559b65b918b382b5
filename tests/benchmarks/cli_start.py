"""How long a command takes to start: a new process each time, against one that imports the libraries alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.measure import Effort, Result, in_turns, paired, seconds
from tests.benchmarks.store_calls import registry_with


def cli_start(effort: Effort) -> list[Result]:
    rounds = effort.of(11, 41)
    with tempfile.TemporaryDirectory() as folder:
        pin = registry_with(3, Path(folder) / "registry").pin
        environ = {**os.environ, "BUNDLECTL_PIN": pin, "NO_COLOR": "1"}

        def run(*argv: str) -> None:
            done = subprocess.run([sys.executable, *argv], cwd=folder, env=environ, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr

        def compared(name: str, verb: list[str], libraries: str, note: str) -> Result:
            def ours() -> float:
                return seconds(lambda: run("-m", "bundlectl", *verb)) * 1000

            def against() -> float:
                return seconds(lambda: run("-c", f"import {libraries}")) * 1000

            in_turns(ours, against, 1)  # compiles what was not compiled yet
            return paired(name, "ms", note, in_turns(ours, against, rounds))

        return [
            compared("CLI start, --help", ["--help"], "typer, rich", "against import typer, rich; hoped for: <= 2"),
            compared(
                "CLI start, status",
                ["status", "--registry", "registry"],
                "typer, rich, pydantic",
                "one live release in a folder; against import typer, rich, pydantic; hoped for: <= 3",
            ),
        ]
