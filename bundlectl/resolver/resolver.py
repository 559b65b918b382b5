"""What serves now: a reference that is read without waiting, and a background task that keeps it right.

    resolver = Resolver(registry, "support", "prod", pin, prepare, state_dir=Path("/var/lib/app"))
    await resolver.start()
    compiled = resolver.current()

The task asks for head at every poll, verifies it, builds the new bundle's compiled form off to the side and
swaps one reference; requests in flight finish on what they started with. What fails verification is refused
and reported, and the last good stays. Registry work is done in one thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, TypeVar

from bundlectl.model.errors import BackendUnavailable, BundlectlError, VerificationFailed
from bundlectl.registry.registry import Registry
from bundlectl.registry.witness import Witness
from bundlectl.resolver.follower import Follower, Step
from bundlectl.resolver.lastgood import LastGood
from bundlectl.resolver.standby import Standby
from bundlectl.resolver.trusted import VerifiedBundle
from bundlectl.trust.keyring import VerifiedKeyring

T = TypeVar("T")
R = TypeVar("R")

EventKind = Literal["serving", "refused", "unreachable", "reachable", "stopped", "resumed", "alarm", "defect"]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that an operator wants to know. The same event is not told twice in a row.

    ``serving``: another release serves. ``refused``: head was not believed or could not be prepared; the last
    good stays. ``unreachable``, ``reachable``: the registry; what it holds is believed again, too. ``stopped``: what
    served was blocked or has expired, and nothing serves. ``resumed``: it may serve again. ``alarm``: it serves, and
    something is wrong.
    ``defect``: an error in bundlectl or in ``prepare``; polling goes on.
    """

    kind: EventKind
    message: str
    time: datetime
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Status:
    """How a resolver is doing, as of now."""

    source: Literal["registry", "last_good"] | None = None
    """Where what serves was read; None while nothing serves."""
    epoch: int | None = None
    serial: int | None = None
    bundle: str | None = None
    since: datetime | None = None
    """When this process began to serve it."""
    last_poll: datetime | None = None
    """When a poll last found head in order: unchanged, or followed."""
    last_error: str | None = None
    """Why the latest poll did not; None if it did."""
    stale_since: datetime | None = None
    """Since when polls have failed; None while they succeed."""
    stopped: str | None = None
    """Why nothing serves although something was prepared: blocked or expired."""
    alarms: tuple[str, ...] = ()

    @property
    def stale(self) -> bool:
        """Whether what serves may no longer be the head."""
        return self.stale_since is not None


def _utc_now() -> datetime:
    return datetime.now(UTC)


def _silent(event: Event) -> None:
    """Tell nobody; status holds the same."""


class Resolver(Generic[T]):
    """Resolves one environment to the compiled form that its caller prepares.

    Args:
        registry: where.
        app: whose.
        environment: which.
        pin: digest of the keyring that is trusted outright.
        prepare: makes the compiled form of a verified bundle; runs on the loop, so heavy work belongs in a
            thread. A ``BundlectlError`` from it refuses the release, and it is tried again at the next poll.
        state_dir: where the last good is kept; None: a restart needs the registry.
        poll: seconds between polls.
        clock: the wall clock, in UTC.
        on_event: told on the loop; must not block.
        witness: asks what was released last, of a place that whoever writes to the registry cannot write to. Asked
            once, by a resolver that starts without a last good: ahead of head, it is an alarm.
    """

    def __init__(
        self,
        registry: Registry,
        app: str,
        environment: str,
        pin: str,
        prepare: Callable[[VerifiedBundle], Awaitable[T]],
        *,
        state_dir: Path | None = None,
        poll: float = 5.0,
        clock: Callable[[], datetime] = _utc_now,
        on_event: Callable[[Event], None] = _silent,
        witness: Callable[[], Witness | None] | None = None,
    ) -> None:
        self.name = f"{app}:{environment}"
        self.status = Status()
        lastgood = LastGood(state_dir, app, environment) if state_dir is not None else None
        self._follower = Follower(registry, app, environment, pin, lastgood=lastgood, clock=clock, witness=witness)
        self._prepare = prepare
        self._poll = poll
        self._clock = clock
        self._on_event = on_event
        self._told: dict[str, str] = {}
        self._doubts: tuple[str, ...] = ()
        self._current: T | None = None
        self._prepared: T | None = None
        self._absent: BundlectlError = VerificationFailed(
            f"{self.name} is not resolved yet.", fix="Await start() first."
        )
        self._executor: ThreadPoolExecutor | None = None
        self._task: asyncio.Task[None] | None = None
        self._looking = asyncio.Lock()
        self._standby: Standby[T] | None = None

    def current(self) -> T:
        """Give what serves; a plain read.

        Raises:
            VerificationFailed: nothing may serve: what served was blocked or has expired; or it is not started.
        """
        current = self._current
        if current is None:
            raise self._absent
        return current

    @property
    def rollback_target(self) -> str | None:
        """Digest of what a rollback would return to; None: what serves names nothing, or nothing serves."""
        return self._standby.bundle if self._standby is not None and self._current is not None else None

    async def prepared_target(self) -> T:
        """Give the rollback target's compiled form, with the bindings that a rollback would give it.

        It is read, judged as a rollback to it would be, and prepared by the first who asks; it stays until another
        release serves, it does not verify any more, or nobody has asked for a quarter of an hour.

        Raises:
            NotFound: what serves names none, or the registry does not hold it.
            VerificationFailed: it does not verify; what serves goes on.
            BackendUnavailable: the registry is away; or it is being prepared still.
        """
        if self._standby is None or self._current is None:
            raise self._absent
        return await self._standby.prepared()

    @property
    def keyring(self) -> VerifiedKeyring:
        """Root's newest word that was verified.

        Raises:
            VerificationFailed: none was yet.
        """
        return self._follower.keyring

    async def start(self) -> None:
        """Resolve once, from the registry or else from the last good, and go on in the background.

        Raises:
            BackendUnavailable: the registry cannot be reached, and there is no last good.
            VerificationFailed: head is refused, and there is no last good.
            NotFound: nothing is released, or there is no registry.
        """
        if self._task is not None:
            return
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"resolver-{self.name}")
        try:
            await self._start()
        except BaseException:
            self._executor.shutdown(wait=False)
            self._executor = None
            raise
        self._task = asyncio.create_task(self._follow(), name=f"resolver {self.name}")

    async def stop(self) -> None:
        """End the background task; what serves can still be read."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
        if self._standby is not None:
            await self._standby.stop()
        if self._executor is not None:
            executor, self._executor = self._executor, None
            await asyncio.to_thread(executor.shutdown)

    async def poll_now(self) -> None:
        """Look at the registry once, out of turn; :meth:`start` must have been awaited."""
        await self._look()

    # ------------------------------------------------------------ the task

    async def _start(self) -> None:
        recalled: VerifiedBundle | None = None
        try:
            recalled = await self._in_thread(self._follower.recall)
        except VerificationFailed as error:
            self._tell("alarm", f"The last good is not used: {error.what} {error.why}".strip(), error)
        problem = await self._look()
        if self._prepared is not None:
            return
        if recalled is None:
            raise problem or self._absent
        await self._serve(recalled, "last_good")
        # Judged again by the newest keyring, which the look may have fetched although head was refused.
        await self._look()
        if self._current is None:
            raise self._absent

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll)
            look = asyncio.create_task(self._look())
            try:
                await asyncio.wait({look})
            finally:
                look.cancel()
            if not look.cancelled() and (defect := look.exception()) is not None:
                self._tell("defect", f"{type(defect).__name__}: {defect}", defect)
                self._fail(f"A defect, not a refusal: {type(defect).__name__}: {defect}")

    async def _look(self) -> BundlectlError | None:
        """Look once, and never twice at the same time: an older release must not be ready after a newer one."""
        async with self._looking:
            return await self._take_step()

    async def _take_step(self) -> BundlectlError | None:
        """Take one step and act on it; give why head was not followed."""
        step = await self._in_thread(self._follower.step)
        self._judge(step)
        await self._judge_standby()
        error = step.error
        if error is None and step.candidate is not None:
            try:
                await self._serve(step.candidate, "registry")
            except BundlectlError as caught:
                error = caught
        if error is None:
            if self._told.pop("unreachable", None) is not None:
                self._tell("reachable", f"The registry of {self.name} answers again.")
            if self._told.pop("refused", None) is not None and step.candidate is None:
                self._tell("reachable", f"The head of {self.name} is believed again: release {self.status.serial}.")
            self.status = replace(self.status, last_poll=self._clock(), last_error=None, stale_since=None)
        else:
            away = isinstance(error, BackendUnavailable)
            self._tell("unreachable" if away else "refused", f"{error.what} {error.why}".strip(), error)
            self._fail(str(error))
        return error

    async def _serve(self, bundle: VerifiedBundle, source: Literal["registry", "last_good"]) -> None:
        prepared = await self._prepare(bundle)
        self._prepared = self._current = prepared
        self._standby = Standby(bundle, self._read_target, self._prepare, self._doubt_target)
        alarms = (*(bundle.release.alarms if bundle.release else ()), *self._doubts)
        self.status = replace(
            self.status,
            source=source,
            epoch=bundle.ref.epoch,
            serial=bundle.ref.serial,
            bundle=bundle.ref.bundle,
            since=self._clock(),
            stopped=None,
            alarms=alarms,
        )
        self._told.pop("stopped", None)
        self._tell("serving", f"{self.name} serves release {bundle.ref.serial}: bundle {bundle.ref.bundle}.")
        for alarm in alarms:
            self._tell("alarm", alarm)
        problem = await self._in_thread(lambda: self._follower.accept(bundle))
        if problem is not None:
            self._tell("alarm", problem)

    def _judge(self, step: Step) -> None:
        """Stop, resume and raise alarms about what serves, before anything new is prepared."""
        now = {f"alarm {alarm}" for alarm in (*step.alarms, *step.doubts)}
        for slot in [slot for slot in self._told if slot.startswith("alarm ") and slot not in now]:
            del self._told[slot]
        self._doubts = step.doubts
        for alarm in (*step.alarms, *step.doubts):
            self._tell("alarm", alarm)
        if step.stop is not None:
            self._current, self._absent = None, step.stop
            self.status = replace(self.status, stopped=str(step.stop), alarms=step.doubts)
            self._tell("stopped", f"{step.stop.what} {step.stop.why}".strip(), step.stop)
        elif self._prepared is not None:
            if self._current is None:
                self._current = self._prepared
                self._told.pop("stopped", None)
                self._tell("resumed", f"{self.name} may serve release {self.status.serial} again.")
            self.status = replace(self.status, stopped=None, alarms=(*step.alarms, *step.doubts))

    async def _judge_standby(self) -> None:
        """Let go of a prepared rollback target that nobody asks for, or that must not answer any more."""
        standby = self._standby
        if standby is None or standby.verified is None:
            return
        if standby.forgotten:
            standby.let_go()
            return
        live, target = standby.live, standby.verified
        try:
            await self._in_thread(lambda: self._follower.check_target(live, target))
        except VerificationFailed as error:
            standby.let_go()
            self._doubt_target(error)

    async def _read_target(self, live: VerifiedBundle) -> VerifiedBundle:
        return await self._in_thread(lambda: self._follower.target(live))

    def _doubt_target(self, error: BundlectlError) -> None:
        said = f"The rollback target of {self.name} cannot answer: {error.what} {error.why}".strip()
        self._tell("alarm", said, error)

    def _fail(self, why: str) -> None:
        since = self.status.stale_since or self._clock()
        self.status = replace(self.status, last_error=why, stale_since=since)

    def _tell(self, kind: EventKind, message: str, error: BaseException | None = None) -> None:
        # Alarms are several at a time. An outage is one event, whatever the calls were that failed in it; its end is
        # told each time.
        slot = f"{kind} {message}" if kind == "alarm" else kind
        if kind in ("reachable", "resumed"):
            self._told.pop(slot, None)
        if self._told.get(slot) != message and not (kind == "unreachable" and slot in self._told):
            self._told[slot] = message
            self._on_event(Event(kind, message, self._clock(), error))

    async def _in_thread(self, work: Callable[[], R]) -> R:
        if self._executor is None:
            raise RuntimeError(f"{self.name} does not follow: start() was not awaited, or stop() was")
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)
