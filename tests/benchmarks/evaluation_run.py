"""A whole `eval` against the time that its model takes; the same again from the cache; memory of a large dataset.

400 cases, a model that takes 100 ms, 20 at once: two seconds, if everything else took none. It is asked over HTTP by
the real router, and everything that `eval` does is in the time: reading, asking, scoring, keeping, the report.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import Evaluated, Settings, evaluate
from bundlectl.actions.keyring import keyring_init
from bundlectl.model.components import Model
from tests.benchmarks.answer_in_process import ROOT
from tests.benchmarks.evaluation_memory import APP, context, write_suite
from tests.benchmarks.measure import Effort, Result, paired
from tests.benchmarks.router_over_http import started
from tests.support.world import tiny_bundle

CASES, SECONDS, AT_ONCE = 400, 0.1, 20
IDEAL = CASES * SECONDS / AT_ONCE


def evaluation_run(effort: Effort) -> list[Result]:
    return [*_speed(effort.of(3, 10)), *_memory(effort.of(10_000, 100_000))]


def _speed(rounds: int) -> list[Result]:
    cold, warm, busy, bare = [], [], [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        started("tests.benchmarks.slow_models", str(SECONDS), processors=set(range(256))) as models,
    ):
        bindings = Path(folder) / "bindings.yaml"
        url = f"http://127.0.0.1:{models.port}/v1"
        form = {"apiVersion": "bundlectl/v1", "kind": "Bindings", "models": {"plain": {"base_url": url}}}
        bindings.write_text(json.dumps(form), encoding="utf-8")
        ctx = context(Path(folder))
        keyring_init(ctx, APP, suites=["s"])
        suite = write_suite(Path(folder) / "suite", CASES)
        _timed(ctx, "warming up", suite, bindings)
        for turn in range(rounds):
            bare.append(asyncio.run(_bare(url)))
            own = time.process_time()
            first, asked = _timed(ctx, f"turn {turn}", suite, bindings)
            busy.append(time.process_time() - own)
            again, given = _timed(ctx, f"turn {turn}", suite, bindings)
            assert asked.result.cache_hits is None and given.result.cache_hits == CASES
            cold.append(first)
            warm.append(again)
    size = f"{CASES} cases x {SECONDS * 1000:.0f} ms, {AT_ONCE} at once"
    own = f"best {IDEAL / min(cold):.2f}; own CPU {statistics.median(busy):.2f} s"
    return [
        paired("eval, share of ideal", "s", f"{size}; hoped for: >= 0.9; {own}", [(IDEAL, took) for took in cold]),
        paired("eval, share of bare posts", "s", f"the same posts with nothing around them; {own}", _of(bare, cold)),
        paired("eval, again from the cache", "s", f"{size}; hoped for: >= 20", _of(cold, warm)),
    ]


def _of(ours: list[float], against: list[float]) -> list[tuple[float, float]]:
    return list(zip(ours, against, strict=True))


async def _bare(url: str) -> float:
    """Post as often, as many at once: what this machine makes of the ideal at this moment."""
    left = iter(range(CASES))

    async def work(session: aiohttp.ClientSession) -> None:
        for _ in left:
            body = {"model": "m", "messages": [{"role": "user", "content": "How do I promote a release?"}]}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                assert response.status == 200, await response.text()
                await response.read()

    began = time.perf_counter()
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(work(session) for _ in range(AT_ONCE)))
    return time.perf_counter() - began


def _timed(ctx: Context, text: str, suite: Path, bindings: Path) -> tuple[float, Evaluated]:
    bundle = tiny_bundle(text, app=APP, models={"plain": Model(provider="openai", model="m")})
    ctx.registry.put_bundle(APP, bundle)
    began = time.perf_counter()
    (found,) = evaluate(
        ctx,
        f"{APP}@{bundle.digest}",
        suite=suite,
        bindings_file=bindings,
        settings=Settings(concurrency=AT_ONCE, sign=False),
    )
    return time.perf_counter() - began, found


def _memory(cases: int) -> list[Result]:
    few, many = _peak(cases // 10), _peak(cases)
    each = (many - few) * 1024 / (cases - cases // 10)
    note = f"peak of a process that evaluates {cases:,} cases, against {cases // 10:,}; {each:.1f} KiB a case"
    return [Result("eval, memory", many, few, many / few, "MiB", note)]


def _peak(cases: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.evaluation_memory", folder, str(cases)],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
    return float(json.loads(ran.stdout)["mib"])
