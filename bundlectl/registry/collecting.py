"""What is marked for collection: how it is read, how it is refused, and how a mark is lifted from what is needed again.

One document for each app, changed by swap. That is what makes gc safe beside others: a mark stands for 24 hours
before anything goes, so whoever reads none has that long to commit what gc will then find; who finds its bundle
marked must lift the mark first; and the swap that begins a sweep and the swap that lifts a mark exclude each other.
A mark is not verified here: one that nobody signed makes bundlectl more careful, and only gc deletes by it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, hex_of, parse_document
from bundlectl.model.collecting import GC_MARK_PAYLOAD_TYPE, GcMark, GcState
from bundlectl.model.errors import Conflict, VerificationFailed
from bundlectl.model.types import format_time, wrong_fields
from bundlectl.registry import layout
from bundlectl.storage.store import KeyMissing, OutcomeUnknown, Store, SwapLost, Tag
from bundlectl.trust.envelope import open_document

_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Marks:
    """The state as it was read; ``tag`` None: there was none."""

    state: GcState
    mark: GcMark | None
    tag: Tag | None

    def doomed(self) -> list[str]:
        """Give what is marked and not spared, as keys below the app's prefix."""
        spared = set(self.state.spared)
        return [key for key in self.mark.keys if key not in spared] if self.mark else []


def read_marks(store: Store, app: str) -> Marks:
    """Read what is marked.

    Raises:
        VerificationFailed: the document is damaged.
    """
    key = layout.gc_key(app)
    try:
        stored = store.get(key)
    except KeyMissing:
        return Marks(GcState(), None, None)
    try:
        state = GcState.model_validate(parse_document(stored.data, what=key))
    except ValidationError as error:
        raise VerificationFailed(
            f"{key} does not have its form.",
            why=wrong_fields(error),
            fix="Delete it: gc then marks anew, and nothing is collected for 24 hours.",
        ) from error
    mark = open_document(state.mark, GC_MARK_PAYLOAD_TYPE, GcMark, key) if state.mark else None
    return Marks(state, mark, stored.tag)


def swap_marks(store: Store, app: str, state: GcState, expected: Tag | None) -> Tag:
    """Replace the state.

    Raises:
        SwapLost: someone else changed it first.
        OutcomeUnknown: it may have landed.
    """
    return store.swap(layout.gc_key(app), canonical(state.form()), expected)


def spare(store: Store, app: str, needs: Needs) -> list[str]:
    """Lift the mark from what is needed again, before it is put or relied on; give what was marked.

    Args:
        store: where the registry is.
        app: whose.
        needs: what is needed.

    Raises:
        Conflict: it is being deleted at this moment, or others change the state all the time.
    """
    for _ in range(_ATTEMPTS):
        marks = read_marks(store, app)
        found = [key for key in marks.doomed() if key in needs]
        if not found:
            return []
        if marks.state.sweeping is not None:
            raise Conflict(
                f"What is needed of {app} is being collected at this moment.",
                why=f"gc has been deleting since {format_time(marks.state.sweeping)}; {found[0]} is among it.",
                fix=f"Repeat this in a minute. If gc died, finish it first: bundlectl registry gc {app} --delete",
            )
        state = marks.state.model_copy(update={"spared": sorted({*marks.state.spared, *found})})
        try:
            swap_marks(store, app, state, marks.tag)
        except (SwapLost, OutcomeUnknown):
            continue  # read again: whichever of the two is true is seen there
        return found
    raise Conflict(f"The marks of {app} are changed by others again and again.", fix="Repeat the command.")


def refuse_marked(store: Store, app: str, bundle: Bundle) -> None:
    """Refuse to make live what gc may delete tomorrow.

    Raises:
        Conflict: the bundle or a part of it is marked.
    """
    needs = needs_of(bundle)
    found = [key for key in read_marks(store, app).doomed() if key in needs]
    if found:
        reference = f"{app}@{bundle.digest}"
        raise Conflict(
            f"{reference} is marked for collection; nothing was changed.",
            why=f"No kept release reached it when gc marked {len(found)} objects of it.",
            fix=f"Build it again (bundlectl build PATH), or lift the mark: bundlectl registry gc {app} "
            f"--spare {reference}",
            details={"bundle": bundle.digest, "marked": len(found)},
        )


@dataclass(frozen=True)
class Needs:
    """Keys and folders below an app's prefix; a folder is the first two or three parts of keys."""

    keys: frozenset[str]
    folders: frozenset[str]

    def __contains__(self, key: str) -> bool:
        parts = key.split("/", 3)
        return key in self.keys or "/".join(parts[:2]) in self.folders or "/".join(parts[:3]) in self.folders

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.keys | other.keys, self.folders | other.folders)


def needs_of(bundle: Bundle) -> Needs:
    """Give what a bundle needs: its bytes, what is attested about it, and the snapshots that it pins."""
    snapshots = {
        (retrieval.index, retrieval.snapshot)
        for retrieval in bundle.components.retrieval.values()
        if retrieval.snapshot != "following"
    }
    digests = {layer.digest for layer in bundle.manifest.layers} | {bundle.digest} | {name for _, name in snapshots}
    return Needs(
        frozenset(f"blobs/sha256/{hex_of(name)}" for name in digests) | {f"packs/{hex_of(bundle.digest)}"},
        frozenset(f"indexes/{index}/{hex_of(name)}" for index, name in snapshots)
        | {f"referrers/{hex_of(bundle.digest)}"},
    )
