"""The rollback target of one head, prepared beside it while somebody pins requests to it.

Nothing is read or made before the first asks; all who ask meanwhile wait for the same preparation. It is let go of with
the head that names it, when it does not verify any more, and when nobody has asked for a while.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from bundlectl.model.errors import BackendUnavailable, BundlectlError
from bundlectl.resolver.trusted import VerifiedBundle

T = TypeVar("T")

WAIT_SECONDS: Final = 10.0
"""How long one who asks waits for it to be prepared."""

AGAIN_SECONDS: Final = 5.0
"""How long a failure is told to whoever asks, before it is tried again."""

KEPT_SECONDS: Final = 900.0
"""How long it is kept after it was asked for last."""


class Preparing(BackendUnavailable):
    """It is being prepared still; asking again in some seconds will do."""

    code = "preparing"


class Standby(Generic[T]):
    """One head's rollback target. One event loop."""

    def __init__(
        self,
        live: VerifiedBundle,
        read: Callable[[VerifiedBundle], Awaitable[VerifiedBundle]],
        prepare: Callable[[VerifiedBundle], Awaitable[T]],
        on_failure: Callable[[BundlectlError], None],
    ) -> None:
        """Take the head, what reads and judges its target, what prepares it, and who is told why it failed."""
        self.live = live
        self.verified: VerifiedBundle | None = None
        """What was prepared; None while nothing is."""
        self._read = read
        self._prepare = prepare
        self._on_failure = on_failure
        self._task: asyncio.Task[T] | None = None
        self._asked = self._failed = 0.0

    @property
    def bundle(self) -> str | None:
        """Digest of the target; None if head names none."""
        release = self.live.release
        target = release.release.rollback_target if release is not None else None
        return target.bundle if target is not None else None

    @property
    def forgotten(self) -> bool:
        """Whether it is prepared and nobody has asked for it for a while."""
        return self.verified is not None and time.monotonic() - self._asked > KEPT_SECONDS

    async def prepared(self) -> T:
        """Give its compiled form, prepared by the first who asks.

        Raises:
            Preparing: it takes longer than one who asks should wait.
            BundlectlError: it cannot be read, does not verify, or cannot be prepared.
        """
        self._asked = time.monotonic()
        task = self._task
        if task is None or (self._failed and self._asked - self._failed > AGAIN_SECONDS):
            self._failed = 0.0
            task = self._task = asyncio.create_task(self._make(), name="rollback target")
            task.add_done_callback(_seen)
        await asyncio.wait({task}, timeout=WAIT_SECONDS)
        if not task.done() or task.cancelled():
            raise Preparing("The rollback target is being prepared.", fix="Try again in some seconds.")
        return task.result()

    def let_go(self) -> None:
        """Forget what was prepared; who asks next has it read, judged and prepared anew."""
        self._task, self.verified = None, None

    async def stop(self) -> None:
        """End what is under way."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _make(self) -> T:
        try:
            verified = await self._read(self.live)
            made = await self._prepare(verified)
        except BaseException as error:
            self._failed = time.monotonic()
            if isinstance(error, BundlectlError):
                self._on_failure(error)
            raise
        self.verified = verified
        return made


def _seen(task: asyncio.Task[T]) -> None:
    """Look at how it ended: all who asked may have gone away, and a failure is told elsewhere."""
    if not task.cancelled():
        task.exception()
