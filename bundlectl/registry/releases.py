"""An environment's releases: its head, the commit that moves it, and its history (DESIGN 4).

The swap of head is the only commit. What precedes it, the present head archived in history, changes nothing
that anyone serves; so a crash anywhere leaves the old release or the new one and never blocks the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bundlectl.model.canonical import digest
from bundlectl.model.errors import BackendUnavailable, Conflict, NotFound, VerificationFailed
from bundlectl.model.release import Release
from bundlectl.registry.head import parse_head, place
from bundlectl.registry.layout import Place, head_key, history_key, history_prefix, place_of
from bundlectl.registry.objects import put_immutable, read_or_none
from bundlectl.storage.store import KeyMissing, OutcomeUnknown, Store, StoreUnavailable, SwapLost, Tag

DEADLINE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class HeadState:
    """A head as it was read or committed."""

    data: bytes
    tag: Tag
    """The version to replace it by. Empty after a commit that was itself succeeded before it was read back."""
    digest: str
    """Of ``data``: what the next release names as ``previous``."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One release of an environment, as stored; only its form and place were checked."""

    place: Place
    data: bytes
    digest: str
    release: Release
    live: bool
    """Whether it is the head."""


class Releases:
    """The releases in a store.

    Args:
        store: where the registry is.
        deadline: for how many seconds a swap without an answer is followed up.
        monotonic: a clock in seconds.
        sleep: how to wait; takes seconds.
    """

    def __init__(
        self,
        store: Store,
        *,
        deadline: float = DEADLINE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._deadline = deadline
        self._monotonic = monotonic
        self._sleep = sleep

    def read_head(self, app: str, environment: str) -> HeadState | None:
        """Read the head; None if nothing was ever released here.

        Raises:
            VerificationFailed: there is none, and there is a history: that is tampering, no first promotion.
        """
        for _ in range(2):
            try:
                stored = self._store.get(head_key(app, environment))
            except KeyMissing:
                if next(self._store.list(history_prefix(app, environment)), None) is None:
                    return None
                # The first two releases may have come between the two reads, so head is asked for once more.
                continue
            return HeadState(stored.data, stored.tag, digest(stored.data))
        raise _gone(app, environment)

    def head_if_changed(self, app: str, environment: str, tag: Tag) -> HeadState | None:
        """Read the head unless it still is the version ``tag`` (then None): one call.

        Raises:
            VerificationFailed: there is no head any more, where one was: heads are replaced, never deleted.
        """
        try:
            stored = self._store.get_if_changed(head_key(app, environment), tag)
        except KeyMissing as error:
            raise _gone(app, environment) from error
        return HeadState(stored.data, stored.tag, digest(stored.data)) if stored else None

    def check_newest(self, app: str, environment: str, state: HeadState) -> None:
        """Check that no successor of a head lies in the history; one call, however long the history is.

        A head that was put back by one release only passes: its successor was archived nowhere. Whoever saw that
        one, a resolver, still refuses.

        Raises:
            VerificationFailed: the head was put back.
        """
        at = place(parse_head(state.data, f"the head of {app}:{environment}")[1])
        later = read_or_none(self._store, history_key(app, environment, at.epoch, at.serial + 1))
        if later is None:
            return
        # Two releases may have come since the head was read; then head has moved on as well.
        found = self.read_head(app, environment)
        if found is not None and place(parse_head(found.data, f"the head of {app}:{environment}")[1]) > at:
            return
        raise VerificationFailed(
            f"The head of {app}:{environment} was put back.",
            why=f"It is {at}, and the history holds the release that followed it, {digest(later)}.",
            fix=_put_back(app, environment),
        )

    def commit(self, app: str, environment: str, present: HeadState | None, data: bytes) -> HeadState:
        """Make ``data`` the head in place of ``present`` (None: the first release).

        The caller has already run the resolver's rules on exactly these bytes.

        Raises:
            Conflict: someone else was first; nothing of ours is stored as live. Names the winner.
            VerificationFailed: head and history contradict each other, or ``data`` does not succeed ``present``.
            BackendUnavailable: nothing was committed; or, if it says so, it is unknown and may still land.
        """
        what = f"the new release of {app}:{environment}"
        ours = parse_head(data, what)[1]
        self._check_successor(app, environment, present, ours)
        if present is None:
            if self.read_head(app, environment) is not None:
                raise self._conflict(app, environment, place(ours))
        else:
            old = parse_head(present.data, f"the head of {app}:{environment}")[1]
            archived = history_key(app, environment, old.epoch, old.serial)
            # Whoever succeeds a head archives it first: one that was not archived yet has no successor.
            if not put_immutable(self._store, archived, present.data):
                self._check_place_is_free(app, environment, place(ours), data)
        return self._swap(app, environment, present, data, place(ours))

    def history(self, app: str, environment: str) -> Iterator[Entry]:
        """Give every release, the live one first, then back in time. Each is read only when it is asked for.

        Raises:
            VerificationFailed: a former release is newer than the head (an older head was put back), differs
                from the head of its serial, or does not lie where it belongs; or head is gone.
        """
        # Listed before head is read: what is archived by then is at most as new as the head read afterwards.
        places = sorted((place_of(key) for key in self._store.list(history_prefix(app, environment))), reverse=True)
        state = self.read_head(app, environment)
        if state is None:
            return
        live = self._entry(app, environment, state.data, None)
        if places and places[0] > live.place:
            raise VerificationFailed(
                f"The head of {app}:{environment} was put back.",
                why=f"It is {live.place}, and the history holds {places[0]}.",
                fix=_put_back(app, environment),
                details={"head": live.place.serial, "history": places[0].serial},
            )
        yield live
        for at in places:
            entry = self._former(app, environment, at)
            if entry.place != live.place:
                yield entry
            elif entry.data != live.data:
                raise VerificationFailed(
                    f"{app}:{environment} has two releases at {at}.",
                    why=f"The head is {live.digest}, and the history holds {entry.digest}.",
                )

    def release_at(
        self, app: str, environment: str, serial: int, *, epoch: int | None = None, head: HeadState | None = None
    ) -> Entry:
        """Give one release by its serial.

        Args:
            app: whose.
            environment: where.
            serial: which.
            epoch: in which epoch; by default in the head's.
            head: the head, where it was read already.

        Raises:
            NotFound: there is no such release.
        """
        state = head or self.read_head(app, environment)
        if state is not None:
            live = self._entry(app, environment, state.data, None)
            wanted = Place(epoch or live.place.epoch, serial)
            if wanted == live.place:
                return live
            former = self.former(app, environment, wanted) if wanted < live.place else None
            if former is not None:
                return former
        raise NotFound(
            f"{app}:{environment} has no release {serial}.", fix=f"See bundlectl history {app}:{environment}"
        )

    def former(self, app: str, environment: str, at: Place) -> Entry | None:
        """Give the release that the history holds at a place, or None: one call, and head is not asked."""
        data = read_or_none(self._store, history_key(app, environment, *_pair(at)))
        return self._entry(app, environment, data, at) if data is not None else None

    # ------------------------------------------------------------ the commit, step by step

    def _check_successor(self, app: str, environment: str, present: HeadState | None, ours: Release) -> None:
        expected = present.digest if present else None
        if (ours.app, ours.environment, ours.previous) != (app, environment, expected):
            raise VerificationFailed(
                f"The new release does not succeed the head of {app}:{environment}.",
                why=f"It is for {ours.app}:{ours.environment} and names {ours.previous} as the release before it; "
                f"the head is {expected}.",
                fix="Make the release again from the head as it is now.",
            )

    def _check_place_is_free(self, app: str, environment: str, ours: Place, data: bytes) -> None:
        """Refuse to release anew at a place that the history already holds."""
        former = read_or_none(self._store, history_key(app, environment, *_pair(ours)))
        if former is None or former == data:
            return
        found = self.read_head(app, environment)
        if found is not None and place(parse_head(found.data, "the head")[1]) >= ours:
            raise self._conflict(app, environment, ours)
        raise VerificationFailed(
            f"The head of {app}:{environment} was put back: its history already holds {ours}.",
            why=f"The release there is {digest(former)}.",
            fix="Find out who can write to the registry, and restore the newest head.",
        )

    def _swap(self, app: str, environment: str, present: HeadState | None, data: bytes, ours: Place) -> HeadState:
        key = head_key(app, environment)
        expected = present.tag if present else None
        until = self._monotonic() + self._deadline
        pause, unknown = 0.05, False
        while True:
            try:
                return HeadState(data, self._store.swap(key, data, expected), digest(data))
            except SwapLost:
                # Ours may be what it lost to: an earlier try of this loop, or of a layer below, that landed.
                pass
            except OutcomeUnknown:
                unknown = True
            except StoreUnavailable:
                if not unknown:
                    raise
            cause: BackendUnavailable | None = None
            try:
                landed = self._read_back(app, environment, present, data, ours)
                if landed is not None:
                    return landed
            except BackendUnavailable as error:
                unknown, cause = True, error
            if self._monotonic() + pause > until:
                raise BackendUnavailable(
                    f"It is unknown whether the release of {app}:{environment} at {ours} landed; it may still land.",
                    why=str(cause) if cause else f"The store gave no clear answer within {self._deadline:g} s.",
                    fix=f"Look: bundlectl status {app}. Repeat the command if the release is not there.",
                    details={"unknown": True, "digest": digest(data)},
                ) from cause
            self._sleep(pause)
            pause = min(pause * 2, 2.0)

    def _read_back(
        self, app: str, environment: str, present: HeadState | None, data: bytes, ours: Place
    ) -> HeadState | None:
        """Find out what became of our swap: our head, or None to repeat it, or ``Conflict``."""
        found = self.read_head(app, environment)
        if found is None:
            if present is None:
                return None
            raise _gone(app, environment)
        if found.data == data:
            return found
        there = self._place_read_back(head_key(app, environment), found.data, ours)
        if there > ours:
            key = history_key(app, environment, *_pair(ours))
            archived = read_or_none(self._store, key)
            if archived == data:
                return HeadState(data, "", digest(data))
            if archived is not None:
                self._place_read_back(key, archived, ours)
            raise self._conflict(app, environment, ours)
        if there == ours:
            raise self._conflict(app, environment, ours)
        if present is not None and found.digest == present.digest:
            return None
        raise VerificationFailed(
            f"The head of {app}:{environment} was put back while it was being replaced.",
            why=f"It is {there} now ({found.digest}), and was {present.digest if present else 'none'} before.",
            fix=f"Find out who writes to the registry: bundlectl history {app}:{environment} --verify",
        )

    def _place_read_back(self, key: str, data: bytes, ours: Place) -> Place:
        """Give the place of a release that was read back.

        One that cannot be parsed is no proof that ours did not land: it may be what was read that is damaged.

        Raises:
            StoreUnavailable: other bytes are read now; ask again.
            VerificationFailed: it is damaged where it is stored.
        """
        try:
            return place(parse_head(data, key)[1])
        except VerificationFailed as error:
            if read_or_none(self._store, key) != data:
                raise StoreUnavailable(f"{key} was read back damaged.", why=error.what) from error
            raise VerificationFailed(
                f"{key} is damaged, so it is unknown whether the release at {ours} landed before that.",
                why=f"{error.what} {error.why}".strip(),
                fix="Find out who can write to the registry, and restore it from an earlier version.",
                details={"unknown": True},
            ) from error

    def _conflict(self, app: str, environment: str, ours: Place) -> Conflict:
        """Name who has the place we wanted: from head, or from the history if head has moved on since."""
        data = read_or_none(self._store, history_key(app, environment, *_pair(ours)))
        if data is None:
            data = read_or_none(self._store, head_key(app, environment))
        try:
            winner = parse_head(data, "the winner")[1] if data is not None else None
        except VerificationFailed:
            winner = None
        why = "The release that was first cannot be read."
        details: dict[str, object] = {"serial": ours.serial}
        if winner is not None:
            form = winner.form()
            why = f"{winner.actor} made serial {winner.serial} at {form['time']}: {winner.reason}"
            details = {key: form[key] for key in ("epoch", "serial", "actor", "time", "bundle", "action")}
        return Conflict(
            f"Someone else released to {app}:{environment} first.",
            why=why,
            fix=f"See what is live now (bundlectl status {app}), then decide again.",
            details=details,
        )

    # ------------------------------------------------------------ reading

    def _former(self, app: str, environment: str, at: Place) -> Entry:
        return self._entry(app, environment, self._store.get(history_key(app, environment, *_pair(at))).data, at)

    def _entry(self, app: str, environment: str, data: bytes, at: Place | None) -> Entry:
        what = f"the head of {app}:{environment}" if at is None else f"the release of {app}:{environment} at {at}"
        release = parse_head(data, what)[1]
        found = place(release)
        if (release.app, release.environment) != (app, environment) or (at is not None and found != at):
            raise VerificationFailed(
                f"{what} is another release.".capitalize(),
                why=f"It is {release.app}:{release.environment}, {found}. It was moved or copied here.",
                fix="Restore the right file from a backup.",
            )
        return Entry(found, data, digest(data), release, live=at is None)


def _pair(at: Place) -> tuple[int, int]:
    return at.epoch, at.serial


def _put_back(app: str, environment: str) -> str:
    return (
        "Find out who can write to the registry. Then restore the newest head (S3 keeps versions of head.json); where "
        f"Parameter Store names the registry, bundlectl registry repair {app}:{environment} --reason TEXT may do it."
    )


def _gone(app: str, environment: str) -> VerificationFailed:
    return VerificationFailed(
        f"{app}:{environment} has a history and no head: that is tampering, not a first promotion.",
        why="Nothing in bundlectl ever removes a head.",
        fix="Restore head.json from a backup; the newest former release is the last file in history/.",
    )
