"""Eight at once on a store that fails: how many faults were injected, and how many violations came of it."""

from __future__ import annotations

import os

from tests.benchmarks.measure import Effort, Result
from tests.registry.histories import run_side_by_side


def histories(effort: Effort) -> list[Result]:
    """Run 10,000 seeded histories; 200 where it is not to take long."""
    found = run_side_by_side(effort.of(200, 10_000), os.cpu_count() or 1)
    for violation in found["violations"]:
        print(violation)
    faults = sum(found["faults"].values())
    said = ", ".join(f"{count} {name}" for name, count in found["said"].items())
    struck = ", ".join(f"{count} {name}" for name, count in found["faults"].items())
    return [
        Result(
            name="histories: violations against faults injected",
            ours=len(found["violations"]),
            against=faults,
            ratio=len(found["violations"]) / faults,
            unit="count",
            note=f"0 is wanted; {found['histories']} histories, {found['releases']} releases; verbs said {said}; "
            f"faults: {struck}",
        )
    ]
