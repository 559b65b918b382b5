"""Answers a second of TensorZero's embedded gateway: run by the Python of an environment that has it.

    python peer_tensorzero.py URL_OF_MODELS SECONDS CONCURRENCY

It prints answers a second, and microseconds of processor time for each.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from tensorzero import AsyncTensorZeroGateway  # type: ignore[import-not-found]

CONFIG = """\
[gateway]
observability.enabled = false

[models.small]
routing = ["fake"]

[models.small.providers.fake]
type = "openai"
model_name = "gpt-4o-mini"
api_base = "{url}/"
api_key_location = "none"

[functions.chat]
type = "chat"

[functions.chat.variants.plain]
type = "chat_completion"
model = "small"
"""


async def main(url: str, seconds: float, concurrency: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "tensorzero.toml"
        config.write_text(CONFIG.format(url=url))
        gateway = await AsyncTensorZeroGateway.build_embedded(config_file=str(config))
        done = 0
        until = 0.0

        async def work(first: int) -> None:
            nonlocal done
            number = first
            while time.perf_counter() < until:
                question = f"How do I promote release {number}?"
                answer = await gateway.inference(
                    function_name="chat", input={"messages": [{"role": "user", "content": question}]}
                )
                assert answer.content[0].text
                done += 1
                number += concurrency

        for length in (0.5, seconds):
            done, began, used = 0, time.perf_counter(), time.process_time()
            until = began + length
            await asyncio.gather(*(work(n) for n in range(concurrency)))
            took, used = time.perf_counter() - began, time.process_time() - used
        print(done / took, used / done * 1e6)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3])))
