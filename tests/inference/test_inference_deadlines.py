"""A deadline ends what waits, and nothing else: laws that asyncio's own timeouts keep."""

from __future__ import annotations

import asyncio

import pytest

from bundlectl.inference.deadlines import Deadline
from bundlectl.inference.http import deadline
from bundlectl.inference.provider import ProviderError


def soon(seconds: float = 0.01) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_what_waits_too_long_ends_in_a_timeout() -> None:
    with pytest.raises(TimeoutError), Deadline(soon()):
        await asyncio.sleep(30)
    with pytest.raises(ProviderError) as caught, deadline(soon(), "model small", "first token"):
        await asyncio.sleep(30)
    assert caught.value.kind == "timeout" and caught.value.why == "no first token in time"


async def test_what_is_done_in_time_is_left_alone() -> None:
    with Deadline(soon(30)):
        await asyncio.sleep(0)
    with Deadline(soon(0.01)):
        await asyncio.sleep(0)
    await asyncio.sleep(0.02)  # the deadline that was met strikes nobody afterwards


async def test_an_error_inside_stays_what_it_is() -> None:
    with pytest.raises(ValueError, match="mine"), Deadline(soon(30)):
        raise ValueError("mine")


async def test_the_inner_of_two_deadlines_is_the_one_that_is_told() -> None:
    with pytest.raises(ProviderError), Deadline(soon(30)), deadline(soon(), "model small", "reply"):
        await asyncio.sleep(30)
    with pytest.raises(TimeoutError), Deadline(soon()), deadline(soon(30), "model small", "reply"):
        await asyncio.sleep(30)


async def test_a_cancellation_by_somebody_else_goes_on() -> None:
    async def waits() -> None:
        with Deadline(soon(30)):
            await asyncio.sleep(30)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_at_the_same_moment_is_not_swallowed() -> None:
    async def waits() -> None:
        with Deadline(soon(0.0)):
            await asyncio.sleep(30)

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(soon(0.0), task.cancel)
    with pytest.raises((asyncio.CancelledError, TimeoutError)):
        await task
