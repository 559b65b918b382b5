"""Answers a second of ``router.answer()`` over the fake model server, as peer_tensorzero.py counts them.

python -m tests.benchmarks.peer_router URL_OF_MODELS SECONDS CONCURRENCY
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from bundlectl.actions.listening import run
from bundlectl.inference.client import HttpClient
from bundlectl.model.bindings import Bindings
from bundlectl.receipts.writer import ReceiptLog
from bundlectl.router.assemble import World, assemble
from bundlectl.router.identity import LOCAL
from bundlectl.router.router import Router
from tests.benchmarks.answer_in_process import HELD, whole_replies
from tests.benchmarks.http_server import no_index
from tests.support.answering import bundle_of, contract


async def main(url: str, seconds: float, concurrency: int) -> None:
    address = {"base_url": url}
    bindings = Bindings.model_validate({"models": {"small": address, "own": address}})
    with tempfile.TemporaryDirectory() as folder:
        async with HttpClient() as session:
            world = World(http=session, open_index=no_index)
            compiled = await assemble(bundle_of(whole_replies()), bindings, HELD, world)
            with ReceiptLog(Path(folder), capacity=1_000_000) as log:
                router = Router(lambda: compiled, log)
                done = 0
                until = 0.0

                async def work(first: int) -> None:
                    nonlocal done
                    number = first
                    while time.perf_counter() < until:
                        request = contract(
                            "chat",
                            f"How do I promote release {number}?",
                            tenant_id=f"tenant-{number % 50}",
                            policy_profile="guarded",
                        )
                        assert (await router.answer(request, LOCAL)).output
                        done += 1
                        number += concurrency

                for length in (0.5, seconds):
                    done, began, used = 0, time.perf_counter(), time.process_time()
                    until = began + length
                    await asyncio.gather(*(work(n) for n in range(concurrency)))
                    took, used = time.perf_counter() - began, time.process_time() - used
                print(done / took, used / done * 1e6)


if __name__ == "__main__":
    run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
