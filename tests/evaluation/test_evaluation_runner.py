"""The runner: order, concurrency, errors and their second chance, and what a stopped run leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bundlectl.evaluation.journal import Journal, journal_key
from bundlectl.evaluation.report import CaseResult
from bundlectl.evaluation.result import summarise
from bundlectl.evaluation.runner import run
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.contract import Request
from bundlectl.model.errors import BackendUnavailable, Conflict
from tests.evaluation.builders import (
    BINDINGS,
    BUNDLE,
    NOW,
    Outcome,
    ScriptedRouter,
    answer,
    chunk,
    receipt,
    suite,
    write_suite,
)

KEY: Any = {"bundle": BUNDLE, "bindings": BINDINGS}


def yes(request: Request) -> Outcome:
    return Outcome(answer("yes", cited=["a", "b", "a"]), receipt(chunk("a", rank=1)))


async def go(loaded: LoadedSuite, router: ScriptedRouter, **more: Any) -> list[CaseResult]:
    return await run(loaded, router, identity="me", profile="p", pause=0, clock=lambda: NOW, **more)


def verdict(loaded: LoadedSuite, results: list[CaseResult]) -> str:
    return summarise(loaded, results, bindings=BINDINGS, actor="eve", started=NOW, finished=NOW).verdict


async def test_results_come_in_order_however_the_answers_come(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 20)
    seen: list[str] = []

    class Uneven(ScriptedRouter):
        async def handle(self, request: Request, identity: str) -> Outcome:
            await asyncio.sleep(0.001 * (20 - int(request.input["question"][1:])))
            return await super().handle(request, identity)

    results = await go(loaded, Uneven(yes), concurrency=20, on_done=lambda r: seen.append(r.id))
    assert [r.id for r in results] == [c.id for c in loaded.cases]
    assert sorted(seen) == sorted(r.id for r in results) and seen != [r.id for r in results]
    assert verdict(loaded, results) == "pass"


@pytest.mark.parametrize("concurrency", [1, 3, 50])
async def test_concurrency_is_bounded_and_used(tmp_path: Path, concurrency: int) -> None:
    router = ScriptedRouter(yes, delay=0.001)
    await go(suite(tmp_path, 12), router, concurrency=concurrency)
    assert router.most == min(concurrency, 12) and len(router.asked) == 12


async def test_a_result_holds_what_became_of_the_case(tmp_path: Path) -> None:
    (found,) = await go(suite(tmp_path, 1), ScriptedRouter(yes))
    assert (found.id, found.tags, found.cited, found.route, found.receipt) == (
        "c0",
        ["even"],
        ["a", "b"],
        "fast",
        "r1",
    )
    assert found.scores["exact"].value == 1 and found.error is None and found.time == NOW
    assert found.seconds is not None and found.seconds >= 0 and list(found.snapshots) == ["docs"]


THROTTLED = Outcome(answer(degraded="the model was throttled"), receipt(attempts=("throttled", "ok")))
ERRORS: list[tuple[Any, str]] = [
    (THROTTLED, "a fallback answered, because a model was throttled"),
    (Outcome(answer(degraded="x"), receipt(attempts=("timeout", "unavailable", "ok"))), "timeout and unavailable"),
    (Outcome(answer(degraded="x", refused="no_answer"), receipt(attempts=("open_circuit", "ok"))), "open_circuit"),
    (Outcome(answer(refused="limited"), receipt()), "turned away: limited"),
    (Outcome(answer(refused="unauthenticated"), receipt()), "turned away: unauthenticated"),
    (Outcome(None, receipt(error={"error": "model_unavailable", "stage": "invoke"})), "model_unavailable"),
    (Outcome(None, receipt()), "the router gave no answer"),
    (BackendUnavailable("The index is gone."), "The index is gone."),
    (ConnectionResetError(104, "reset by peer"), "reset by peer"),
]


def giving(*replies: Any) -> Any:
    """Reply in turn; the last one for ever."""
    left = list(replies)

    def reply(request: Request) -> Outcome:
        given = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(given, Exception):
            raise given
        assert isinstance(given, Outcome)
        return given

    return reply


@pytest.mark.parametrize(("reply", "why"), ERRORS)
async def test_what_is_no_answer_is_an_error_and_no_score(tmp_path: Path, reply: Any, why: str) -> None:
    loaded = suite(tmp_path, 1)
    (found,) = await go(loaded, ScriptedRouter(giving(reply)))
    assert found.error is not None and why in found.error and found.attempts == 2
    assert found.scores["exact"].outcome == "error" and verdict(loaded, [found]) == "error"


@pytest.mark.parametrize(("reply", "why"), ERRORS)
async def test_a_second_attempt_that_works_counts(tmp_path: Path, reply: Any, why: str) -> None:
    router = ScriptedRouter(giving(reply, Outcome(answer("yes"), receipt())))
    (found,) = await go(suite(tmp_path, 1), router)
    assert found.error is None and found.attempts == 2 and found.scores["exact"].value == 1


@pytest.mark.parametrize("attempts", [("invalid", "ok"), ("disabled", "ok"), ("refused", "ok")])
async def test_a_fallback_for_the_bundle_s_own_reasons_is_scored(tmp_path: Path, attempts: Any) -> None:
    (found,) = await go(
        suite(tmp_path, 1), ScriptedRouter(giving(Outcome(answer(degraded="why"), receipt(attempts=attempts))))
    )
    assert found.error is None and found.degraded == "why" and found.scores["exact"].value == 1


async def test_a_throttle_that_a_retry_overcame_is_scored(tmp_path: Path) -> None:
    reply = Outcome(answer(), receipt(attempts=("throttled", "ok")))
    (found,) = await go(suite(tmp_path, 1), ScriptedRouter(giving(reply)))
    assert found.error is None and found.attempts == 1


async def test_all_rows_throttled_is_an_error(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 4)
    assert verdict(loaded, await go(loaded, ScriptedRouter(giving(THROTTLED)))) == "error"


async def test_a_defect_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="ours"):
        await go(suite(tmp_path, 8), ScriptedRouter(giving(TypeError("ours")), delay=0.001), concurrency=4)
    assert len(asyncio.all_tasks()) == 1


async def test_a_narrowed_run_never_passes(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 4).only(["c1", "c2"])
    router = ScriptedRouter(yes)
    results = await go(loaded, router)
    assert [r.id for r in results] == ["c1", "c2"] and len(router.asked) == 2
    assert verdict(loaded, results) == "inconclusive"


# ---------------------------------------------------------------- the journal


async def stop_after(loaded: LoadedSuite, folder: Path, n: int) -> ScriptedRouter:
    """Cancel a run once n cases are done."""
    router = ScriptedRouter(yes, delay=0.001)
    done = asyncio.Event()
    count = Counter[str]()

    def on_done(result: CaseResult) -> None:
        count["done"] += 1
        if count["done"] >= n:
            done.set()

    with Journal(folder, journal_key(loaded, **KEY)) as journal:
        task = asyncio.create_task(go(loaded, router, concurrency=2, journal=journal, on_done=on_done))
        await done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert len(asyncio.all_tasks()) == 1
    return router


async def resume(loaded: LoadedSuite, folder: Path) -> tuple[list[CaseResult], list[str], int]:
    router = ScriptedRouter(yes)
    with Journal(folder, journal_key(loaded, **KEY)) as journal:
        results = await go(loaded, router, journal=journal)
        dropped = journal.dropped
    return results, [str(request.input["question"]) for request in router.asked], dropped


async def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 10)
    await stop_after(loaded, tmp_path / "j", 4)
    results, asked, dropped = await resume(loaded, tmp_path / "j")
    assert [r.id for r in results] == [c.id for c in loaded.cases] and dropped == 0
    assert 1 <= len(asked) <= 6 and verdict(loaded, results) == "pass"
    again, asked, _ = await resume(loaded, tmp_path / "j")
    assert again == results and asked == []


async def test_errors_are_not_resumed(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3)
    with Journal(tmp_path / "j", journal_key(loaded, **KEY)) as journal:
        await go(loaded, ScriptedRouter(giving(THROTTLED)), journal=journal)
    results, asked, _ = await resume(loaded, tmp_path / "j")
    assert asked == ["c0", "c1", "c2"] and verdict(loaded, results) == "pass"


async def test_a_torn_last_line_is_dropped_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 6)
    await stop_after(loaded, tmp_path / "j", 3)
    (file,) = (tmp_path / "j").iterdir()
    whole = file.read_bytes()
    for cut in (1, 20, len(whole) - whole.rindex(b"\n", 0, -1) - 2):
        file.write_bytes(whole[:-cut])
        results, _, dropped = await resume(loaded, tmp_path / "j")
        assert dropped == 1 and len(results) == 6
        lines = file.read_bytes().split(b"\n")
        assert lines[-1] == b"" and [json.loads(line)["result"]["id"] for line in lines[:-1]]
        assert (await resume(loaded, tmp_path / "j"))[1:] == ([], 0)


async def test_lines_that_are_no_results_run_again(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 3)
    await resume(loaded, tmp_path / "j")
    (file,) = (tmp_path / "j").iterdir()
    lines = file.read_bytes().splitlines()
    other_key = lines[0].replace(b'"key":"sha256:', b'"key":"sha256:0')
    wrong_score = lines[1].replace(b'"value":1', b'"value":7')
    assert wrong_score != lines[1]
    file.write_bytes(b"\n".join([other_key, wrong_score, lines[2], b"[]", b"\xff"]) + b"\n")
    _, asked, dropped = await resume(loaded, tmp_path / "j")
    assert asked == ["c0", "c1"] and dropped == 4


def test_the_key_differs_if_anything_differs(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    loaded = suite(tmp_path, 3)
    cases = [{"id": f"c{i}", "expected": {"exact": "no"}} for i in range(3)]
    other_data = read_suite(write_suite(tmp_path / "other", cases, [{"name": "exact", "floor": 0.5}]))
    other_suite = suite(tmp_path, 3, scorers=[{"name": "exact", "floor": 0.6}])
    keys = [
        journal_key(loaded, **KEY),
        journal_key(loaded, bundle=BINDINGS, bindings=BINDINGS),
        journal_key(loaded, bundle=BUNDLE, bindings=BUNDLE),
        journal_key(loaded, **KEY, snapshots={"docs": BUNDLE}),
        journal_key(loaded, **KEY, tool_version="other"),
        journal_key(loaded.only(["c1"]), **KEY),
        journal_key(other_data, **KEY),
        journal_key(other_suite, **KEY),
    ]
    assert len(set(keys)) == len(keys)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path, BUNDLE), pytest.raises(Conflict, match="running already"):
        Journal(tmp_path, BUNDLE)
    with Journal(tmp_path, BUNDLE):
        pass


async def test_discard_forgets(tmp_path: Path) -> None:
    loaded = suite(tmp_path, 2)
    with Journal(tmp_path / "j", journal_key(loaded, **KEY)) as journal:
        await go(loaded, ScriptedRouter(yes), journal=journal)
        journal.discard()
    assert list((tmp_path / "j").iterdir()) == []
    assert (await resume(loaded, tmp_path / "j"))[1] == ["c0", "c1"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendUnavailable, match="journal"):
        Journal(tmp_path / "file" / "below", BUNDLE)


FULL_DISK = """
import asyncio, resource, signal, sys
from pathlib import Path
from bundlectl.evaluation.journal import Journal, journal_key
from bundlectl.model.errors import BackendUnavailable
from tests.evaluation.builders import ScriptedRouter, suite
from tests.evaluation.test_evaluation_runner import KEY, go, yes
folder = Path(sys.argv[1])
loaded = suite(folder, 10)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1200, 1200))
with Journal(folder / "j", journal_key(loaded, **KEY)) as journal:
    try:
        asyncio.run(go(loaded, ScriptedRouter(yes), concurrency=1, journal=journal))
    except BackendUnavailable as error:
        sys.exit(error.exit_code)
"""


async def test_a_full_disk_ends_the_run_and_keeps_what_was_finished(tmp_path: Path) -> None:
    child = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], timeout=60, check=False)
    assert child.returncode == 6
    (file,) = (tmp_path / "j").iterdir()
    kept = file.read_bytes().count(b"\n")
    assert kept >= 1 and file.read_bytes().endswith(b"\n")
    _, asked, dropped = await resume(read_suite(tmp_path / "suite.yaml"), tmp_path / "j")
    assert len(asked) == 10 - kept and dropped == 0


INTERRUPTED = """
import asyncio, sys
from pathlib import Path
from bundlectl.evaluation.journal import Journal, journal_key
from tests.evaluation.builders import ScriptedRouter, suite
from tests.evaluation.test_evaluation_runner import KEY, go, yes
folder = Path(sys.argv[1])
loaded = suite(folder, 1000)
with Journal(folder / "j", journal_key(loaded, **KEY)) as journal:
    def on_done(result):
        print(result.id, flush=True)
    try:
        asyncio.run(go(loaded, ScriptedRouter(yes, delay=0.02), concurrency=2, journal=journal, on_done=on_done))
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_ctrl_c_and_kill_lose_nothing_that_was_finished(tmp_path: Path, number: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", INTERRUPTED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child.stdout:
        told = [child.stdout.readline().strip() for _ in range(7)]
        child.send_signal(number)
        told += child.stdout.read().split()
    assert child.wait(timeout=30) == (130 if number is signal.SIGINT else -number)
    with Journal(tmp_path / "j", journal_key(read_suite(tmp_path / "suite.yaml"), **KEY)) as journal:
        assert set(told) <= {case for case, _ in journal.finished} and len(journal.finished) < 1000
