"""A whole `eval` of many cases in a process of its own; prints its peak memory in MiB and its seconds.

    python -m tests.benchmarks.evaluation_memory FOLDER CASES [--cached]

The bundle answers without a model, so that the process itself is what is measured: dataset, runner, journal, report,
statement and registry, as `eval` uses them.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import Settings, evaluate
from bundlectl.actions.keyring import keyring_init
from bundlectl.model.components import Model
from tests.support.world import tiny_bundle

APP = "support"


def context(folder: Path) -> Context:
    ids = count()
    return Context(str(folder / "registry"), lambda: datetime.now(UTC), lambda: f"{next(ids):024x}")


def write_suite(folder: Path, cases: int) -> Path:
    """Write a suite whose cases have a question of usual length each, a tag, and an expectation."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "cases.jsonl").open("w", encoding="utf-8") as out:
        for number in range(cases):
            question = f"How do I promote release {number} of the support app to production without asking anybody?"
            case = {
                "id": f"case-{number}",
                "input": {"question": question},
                "tenant": f"tenant-{number % 50}",
                "role": "support_agent",
                "tags": ["release", f"team-{number % 7}"],
                "expected": {"contains": ["promote"], "refusal": "no_answer"},
            }
            out.write(json.dumps(case) + "\n")
    form = {"apiVersion": "bundlectl/v1", "kind": "Suite", "name": "s", "task": "answer", "dataset": "cases.jsonl"}
    scorers = [{"name": "refusal", "floor": 0.1}, {"name": "contains"}]
    (folder / "s.yaml").write_text(json.dumps(form | {"scorers": scorers}), encoding="utf-8")
    return folder / "s.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("cases", type=int)
    parser.add_argument("--cached", action="store_true", help="keep answers and scores as well, as eval does")
    options = parser.parse_args()
    ctx = context(options.folder)
    keyring_init(ctx, APP, suites=["s"])
    bundle = tiny_bundle(app=APP, models={"plain": Model(provider="extractive")})
    ctx.registry.put_bundle(APP, bundle)
    suite = write_suite(options.folder / "suite", options.cases)
    began = time.perf_counter()
    (found,) = evaluate(ctx, f"{APP}@{bundle.digest}", suite=suite, settings=Settings(cache=options.cached))
    took = time.perf_counter() - began
    assert found.result.cases == options.cases and found.attestation is not None, found.result.why
    print(json.dumps({"mib": peak(), "seconds": took}))


def peak() -> float:
    """Give this process's peak in MiB. getrusage gives that of the process that started it, where it was larger."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:", 1)[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
