"""The I/O around the rules: ask the registry, judge what it gives, remember what was believed.

Synchronous, and used by one thread only: the resolver's own. It never decides what serves; it says what may.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import BackendUnavailable, BundlectlError, NotFound, VerificationFailed
from bundlectl.registry.layout import Place, head_key, keyring_key
from bundlectl.registry.pack import pack, unpack
from bundlectl.registry.registry import Registry
from bundlectl.registry.releases import HeadState
from bundlectl.registry.witness import Witness, check_witness, contradiction
from bundlectl.resolver.keyrings import keyring_chain, open_chain
from bundlectl.resolver.lastgood import LastGood, Saved
from bundlectl.resolver.target import read_target, verify_target
from bundlectl.resolver.trusted import (
    Blocked,
    Expired,
    KeyringTooOld,
    TrustedState,
    VerifiedBundle,
    VerifiedRelease,
    check_unblocked,
    verify_bundle,
    verify_head,
)
from bundlectl.trust.keyring import VerifiedKeyring, next_keyring

KEYRING_EVERY = timedelta(minutes=10)
WITNESS_EVERY = timedelta(minutes=1)
"""How often a witness is asked that does not answer: waiting for it holds up what a poll is for."""


@dataclass(frozen=True)
class Step:
    """What one look at the registry found."""

    candidate: VerifiedBundle | None = None
    """Verified, and not what serves: to be prepared."""
    error: BundlectlError | None = None
    """Why the head could not be followed: unreachable, or refused."""
    stop: VerificationFailed | None = None
    """Why what serves must stop serving at once."""
    alarms: tuple[str, ...] = ()
    """About what serves."""
    doubts: tuple[str, ...] = field(default=())
    """What else is wrong: a keyring that does not follow, a last good that could not be written."""


class Follower:
    """Follows one environment.

    Args:
        registry: where.
        app: whose.
        environment: which.
        pin: digest of the keyring that is trusted outright.
        lastgood: where to remember; None to forget at exit.
        clock: the wall clock.
        witness: asks what was released last, of whoever saw it; believed in nothing but in raising an alarm.
    """

    def __init__(
        self,
        registry: Registry,
        app: str,
        environment: str,
        pin: str,
        *,
        lastgood: LastGood | None,
        clock: Callable[[], datetime],
        witness: Callable[[], Witness | None] | None = None,
    ) -> None:
        self._registry = registry
        self._app = app
        self._environment = environment
        self._pin = pin
        self._lastgood = lastgood
        self._clock = clock
        self._chain: list[bytes] = []
        self._keyring: VerifiedKeyring | None = None
        self._keyring_asked: datetime | None = None
        self._state: TrustedState | None = None
        self._serving: VerifiedBundle | None = None
        self._believed = 1
        self._tag: str | None = None
        self._candidate: tuple[str, VerifiedBundle] | None = None
        self._held: Bundle | None = None
        self._doubts: list[str] = []
        self._refused_keyring: tuple[str, ...] = ()
        self._ask_witness = witness
        self._witnessed: Witness | None = None
        self._witness_asked: datetime | None = None
        self._unheard = ""

    @property
    def keyring(self) -> VerifiedKeyring:
        """Root's newest word that was verified.

        Raises:
            VerificationFailed: none was yet.
        """
        if self._keyring is None:
            raise VerificationFailed(f"No keyring was read yet for {self._app}:{self._environment}.")
        return self._keyring

    def recall(self) -> VerifiedBundle | None:
        """Give the last good from disk; None if there is none. What was believed is remembered from then on.

        Raises:
            VerificationFailed: it is damaged, or the rules refuse it. What could be read of the state counts.
        """
        saved = self._lastgood.load() if self._lastgood else None
        if saved is None:
            return None
        self._state = saved.state
        keyring = open_chain(saved.keyrings, self._pin, registry_id=saved.state.registry)
        self._chain, self._keyring = saved.keyrings, keyring
        # Under the keyring of then: a key that was compromised since leaves a running bundle running, with an
        # alarm, and a restart is no reason to stop it. What is blocked since is found by judging it now.
        count = len(saved.keyrings) - max(0, keyring.version - saved.believed)
        then = open_chain(saved.keyrings[:count], self._pin, registry_id=saved.state.registry)
        release = self._judge(saved.head, then, None)
        bundle = unpack(saved.pack, release.release.bundle)
        check_unblocked(bundle, keyring)
        self._believed = saved.believed
        return verify_bundle(bundle, release, keyring)

    def step(self) -> Step:
        """Look at the registry once, and judge what serves by the newest keyring and the clock."""
        self._doubts.clear()
        candidate: VerifiedBundle | None = None
        error: BundlectlError | None = None
        try:
            candidate = self._look()
        except BundlectlError as caught:
            error = caught
        finally:
            self._registry.store.forget()
        self._compare_with_witness()
        try:
            alarms = self._judge_serving()
        except (Blocked, Expired) as stop:
            return Step(candidate, error, stop, (), (*self._refused_keyring, *self._doubts))
        return Step(candidate, error, None, alarms, (*self._refused_keyring, *self._doubts))

    def accept(self, bundle: VerifiedBundle) -> str | None:
        """Remember what serves from now on; give why it could not be saved, if it could not."""
        self._serving = bundle
        if self._candidate is not None and self._candidate[1] is bundle:
            self._tag = self._candidate[0]
            self._believed = self.keyring.version
        self._candidate = None
        return self._save()

    def target(self, live: VerifiedBundle) -> VerifiedBundle:
        """Read what a head names as its rollback target, and judge it by root's newest word.

        Raises:
            NotFound: head names none, or it is not there.
            VerificationFailed: it does not verify.
            BackendUnavailable: the registry is away.
        """
        try:
            self._advance()
            return read_target(self._registry, live, self.keyring)
        finally:
            self._registry.store.forget()

    def check_target(self, live: VerifiedBundle, target: VerifiedBundle) -> None:
        """Judge a rollback target that was read before, by the keyring of now.

        Raises:
            VerificationFailed: it must not answer any more.
        """
        if live.release is not None and target.release is not None:
            check_unblocked(target.bundle, self.keyring)
            verify_target(target.release.data, live.release, self.keyring)

    # ------------------------------------------------------------ asking

    def _look(self) -> VerifiedBundle | None:
        asked = True
        self._hear_witness()
        if self._keyring is None:
            self._registry.store.expect(keyring_key(1), keyring_key(2), head_key(self._app, self._environment))
            self._chain = keyring_chain(self._registry, self._pin)
            self._keyring = open_chain(self._chain, self._pin)
            self._keyring_asked = self._clock()
        elif not self._fresh(self._keyring_asked, KEYRING_EVERY):
            self._advance()
        else:
            asked = False
        head = self._changed_head()
        if head is None:
            return None
        if not asked:
            self._advance()
        try:
            release = self._judge(head.data, self._keyring, self._state)
        except KeyringTooOld:
            # Keyring and head may both have come between the two reads.
            self._advance()
            release = self._judge(head.data, self._keyring, self._state)
        found = verify_bundle(self._bundle(release.release.bundle), release, self._keyring)
        self._state = release.trusted_state(self._keyring, self._state)
        self._candidate = (head.tag, found)
        return found

    def _changed_head(self) -> HeadState | None:
        releases = self._registry.releases
        if self._tag is not None:
            return releases.head_if_changed(self._app, self._environment, self._tag)
        head = releases.read_head(self._app, self._environment)
        if head is None:
            check_witness(self._witnessed, None, None, self._app, self._environment)
            raise NotFound(
                f"Nothing is released in {self._app}:{self._environment}.",
                fix=f"Promote a bundle: bundlectl promote REF --to {self._environment} --reason TEXT",
            )
        return head

    def _hear_witness(self) -> None:
        """Ask the witness once, before the first head that is read without a trusted state.

        With a state, an older head is refused by the rules; without one, only the witness knows better.
        """
        if self._ask_witness is None:
            return
        if self._state is not None and not self._unheard:
            self._ask_witness = None
            return
        if not self._unheard or not self._fresh(self._witness_asked, WITNESS_EVERY):
            try:
                self._witnessed = self._ask_witness()
                self._ask_witness, self._unheard = None, ""
            except (BackendUnavailable, VerificationFailed) as error:
                self._unheard = f"Whether an older head was put back is not known: {error.what} {error.why}".strip()
            self._witness_asked = self._clock()
        if self._unheard:
            self._doubts.append(self._unheard)

    def _compare_with_witness(self) -> None:
        state = self._state
        if state is not None:
            why = contradiction(self._witnessed, Place(state.epoch, state.serial), state.head)
            if why is None:
                self._witnessed = None
            else:
                self._doubts.append(f"The head of {self._app}:{self._environment} was put back, or is lost. {why}")

    def _bundle(self, digest_: str) -> Bundle:
        if self._held is None or self._held.digest != digest_:
            self._held = self._registry.get_bundle(self._app, digest_)
        return self._held

    def _advance(self) -> None:
        """Take the keyrings that follow. One that does not follow is reported and stops nothing."""
        keyring = self.keyring
        self._refused_keyring = ()
        try:
            while (data := self._registry.keyring_bytes(keyring.version + 1)) is not None:
                keyring = self._keyring = next_keyring(keyring, data)
                self._chain = [*self._chain, data]
        except VerificationFailed as error:
            # Told until it is asked again: once in ten minutes would be missed by whoever looks at the status.
            self._refused_keyring = (f"Keyring {keyring.version + 1} is refused: {error.what} {error.why}".strip(),)
        finally:
            # Also where the registry went away in the middle: a block that was heard must outlive a restart.
            self._remember(keyring)
        # Where the registry did not answer, nothing was heard: the next poll asks again, not the one in ten minutes.
        self._keyring_asked = self._clock()

    def _remember(self, keyring: VerifiedKeyring) -> None:
        if self._state is not None and keyring.version > self._state.keyring:
            self._state = self._state.model_copy(update={"keyring": keyring.version, "keyring_digest": keyring.digest})
            problem = self._save()
            if problem is not None:
                self._doubts.append(problem)

    def _fresh(self, asked: datetime | None, for_: timedelta) -> bool:
        # A clock that was set back must not keep a block from being heard of.
        return asked is not None and timedelta(0) <= self._clock() - asked < for_

    # ------------------------------------------------------------ judging

    def _judge(self, head: bytes, keyring: VerifiedKeyring, state: TrustedState | None) -> VerifiedRelease:
        registry_id = keyring.registry
        if registry_id is None:
            raise VerificationFailed(
                "The registry's id is not known.",
                why="It is the digest of keyring 1, and the keyrings before the pinned one are missing.",
                fix="Restore the registry's earlier keyrings.",
            )
        return verify_head(
            head,
            app=self._app,
            environment=self._environment,
            registry_id=registry_id,
            keyring=keyring,
            state=state,
            now=self._clock(),
        )

    def _judge_serving(self) -> tuple[str, ...]:
        """Give what is wrong with what serves, and does not forbid it.

        Raises:
            Blocked, Expired: it must stop.
        """
        if self._serving is None or self._serving.release is None or self._keyring is None:
            return ()
        check_unblocked(self._serving.bundle, self._keyring)
        try:
            return self._judge(self._serving.release.data, self._keyring, None).alarms
        except (Blocked, Expired):
            raise
        except VerificationFailed as error:
            return (f"What serves would not be believed again: {error.what} {error.why}".strip(),)

    def _save(self) -> str | None:
        serving = self._serving
        if self._lastgood is None or serving is None or serving.release is None or self._state is None:
            return None
        saved = Saved(self._state, self._believed, self._chain, serving.release.data, pack(serving.bundle))
        try:
            self._lastgood.save(saved)
        except BackendUnavailable as error:
            return f"{error.what} {error.why}".strip()
        return None
