"""What the daily verbs on a source cost in a process that is warm: validate and build of bundles/support."""

from __future__ import annotations

import tempfile
from pathlib import Path

import yaml

from bundlectl.actions.build import build
from bundlectl.actions.keyring import keyring_init
from bundlectl.actions.validate import validate
from tests.benchmarks.answer_in_process import ROOT, context
from tests.benchmarks.measure import Effort, Result, in_turns, paired, seconds

SOURCE = ROOT / "bundles" / "support"


def parse_alone() -> None:
    """Read the source's YAML with the plain loader, and nothing else."""
    for path in (SOURCE / "bundle.yaml", *(SOURCE / "environments").glob("*.yaml"), *SOURCE.glob("[ap]*/*.yaml")):
        yaml.safe_load(path.read_text(encoding="utf-8"))


def source_work(effort: Effort) -> list[Result]:
    rounds = effort.of(21, 101)
    against = lambda: seconds(parse_alone) * 1000  # noqa: E731
    note = "against reading the same YAML with yaml.safe_load"
    with tempfile.TemporaryDirectory() as folder:
        ctx = context(Path(folder))
        keyring_init(ctx, "support", owner="bench")
        results = []
        for name, work in {"validate": lambda: validate(SOURCE), "build": lambda: build(ctx, SOURCE)}.items():
            work()
            pairs = in_turns(lambda work=work: seconds(work) * 1000, against, rounds)  # type: ignore[misc]
            more = "; stored before, signs provenance, asks git" if name == "build" else ""
            results.append(paired(f"{name} bundles/support, warm", "ms", note + more, pairs))
    return results
