"""What gc writes: the signed mark, and the state around it that a builder may change as well."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field

from bundlectl.model.attestation import Envelope
from bundlectl.model.types import Digest, Principal, StoreName, Strict, Time

GC_MARK_PAYLOAD_TYPE: Final = "application/vnd.bundlectl.gc-mark.v1+json"
MAX_MARKED: Final = 5_000
"""Objects in one mark; a promotion reads it whole. What is left over is marked the next time."""


class GcMark(Strict):
    """What nothing reached at a time; signed by role gc. ``keys`` are below ``apps/<app>/``."""

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["GcMark"] = "GcMark"
    registry: Digest
    app: StoreName
    time: Time
    actor: Principal
    keys: Annotated[list[str], Field(max_length=MAX_MARKED)]


class GcState(Strict):
    """An app's ``gc/state.json``; replaced by swap only.

    ``spared`` are marked keys that are needed again: whoever puts a bundle adds its own. ``sweeping``: since when
    marked and not spared keys are being deleted; from then on nothing more is spared. ``sweep``: an id of who does,
    so that two that begin in the same second are told apart.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["GcState"] = "GcState"
    mark: Envelope | None = None
    spared: list[str] = []
    sweeping: Time | None = None
    sweep: Annotated[str, Field(min_length=1, max_length=64)] | None = None
