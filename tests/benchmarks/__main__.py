"""Run the measures, print a table, write the list.

    python -m tests.benchmarks [--write build/bench.json] [--soak] [--only NAME]

Figures only: nothing here passes or fails. Notes say what DESIGN section 15 hopes for.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.answer_in_process import answer_in_process
from tests.benchmarks.aws_calls import aws_calls
from tests.benchmarks.brownout import brownouts
from tests.benchmarks.cli_start import cli_start
from tests.benchmarks.evaluation_run import evaluation_run
from tests.benchmarks.histories import histories
from tests.benchmarks.measure import Effort, Result
from tests.benchmarks.peers import peers
from tests.benchmarks.retrieval_quality import retrieval_quality
from tests.benchmarks.router_over_http import router_over_http
from tests.benchmarks.router_under_load import router_under_load
from tests.benchmarks.source_work import source_work
from tests.benchmarks.store_calls import store_calls
from tests.benchmarks.swap_read import current_read

MEASURES: dict[str, Callable[[Effort], list[Result]]] = {
    "cli": cli_start,
    "current": current_read,
    "answer": answer_in_process,
    "http": router_over_http,
    "load": router_under_load,
    "brownout": brownouts,
    "peers": peers,
    "calls": store_calls,
    "aws": aws_calls,
    "source": source_work,
    "eval": evaluation_run,
    "retrieval": retrieval_quality,
    "histories": histories,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measure speed as ratios.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the results as a JSON list")
    parser.add_argument("--soak", action="store_true", help="take as long as it takes")
    parser.add_argument("--only", choices=sorted(MEASURES), metavar="NAME", help=f"one of {', '.join(MEASURES)}")
    options = parser.parse_args()
    results: list[Result] = []
    for name, measure in MEASURES.items():
        if options.only in (None, name):
            began = time.perf_counter()
            found = measure(Effort(options.soak))
            print(f"{name}: {len(found)} results in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            results += found
    table(results)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(json.dumps([r.form() for r in results], indent=2, ensure_ascii=False) + "\n")
    return 0


def table(results: list[Result]) -> None:
    width = max((len(result.name) for result in results), default=0)
    print(f"{'':{width}}  {'ours':>10} {'against':>10} {'ratio':>8}  unit")
    for result in results:
        form = result.form()
        figures = f"{form['ours']:>10,.6g} {form['against']:>10,.6g} {form['ratio']:>8.4g}"
        print(f"{result.name:{width}}  {figures}  {result.unit}; {result.note}")


if __name__ == "__main__":
    sys.exit(main())
