"""A release: the signed record that makes one bundle live in one environment; and head, which holds it whole.

The release is the predicate of an in-toto statement whose subject is the bundle. ``head.json`` carries the
release's envelope with everything a resolver needs to verify it: the promotions it descends from, the evidence
about its bundle, and the policies that they name.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bundlectl.model.attestation import Envelope
from bundlectl.model.bindings import Bindings
from bundlectl.model.types import Digest, Principal, StoreName, Strict, Text, Time

Action = Literal["promotion", "rollback", "renewal", "rebind"]
MAX_HEAD = 256 * 1024
MAX_SERIAL = 2**53 - 1
"""The largest integer that canonical JSON can say."""


class Release(Strict):
    """One serial of one environment.

    ``previous`` is the sha256 of the bytes of the head that this one replaces; absent only at the first
    serial of the first epoch. ``since`` is when the bundle went live here; a renewal or a rebind keeps it.
    ``candidate`` and ``tenant_pins`` are reserved: their format is fixed, this version refuses to serve them.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Release"] = "Release"
    registry: Digest
    app: StoreName
    environment: StoreName
    epoch: Annotated[int, Field(ge=1)]
    serial: Annotated[int, Field(ge=1, le=MAX_SERIAL)]
    previous: Digest | None = None
    action: Action
    bundle: Digest
    bindings: Bindings
    candidate: Candidate | None = None
    tenant_pins: dict[str, Digest] | None = None
    rollback_target: RollbackTarget | None = None
    reason: Text
    actor: Principal
    since: Time
    time: Time
    expires: Time | None = None
    keyring: Annotated[int, Field(ge=1)]
    policy: Annotated[int, Field(ge=1)]


class RollbackTarget(Strict):
    """The bundle that a rollback without a serial returns to, and where its promotion lies in the history.

    Naming the place makes a rollback a fixed number of reads, however long the history is.
    """

    bundle: Digest
    epoch: Annotated[int, Field(ge=1)]
    serial: Annotated[int, Field(ge=1)]


class Candidate(Strict):
    """A second bundle that a share of the requests is to get. Reserved."""

    bundle: Digest
    percent: Annotated[int, Field(ge=0, le=100)]


Release.model_rebuild()


class Head(Strict):
    """The live release, whole; the one object whose swap commits.

    ``origins``: envelopes of the releases this one descends from, nearest first. A promotion has none; a
    rollback and a rebind carry the promotion of their bundle; a renewal carries the promoter's release that it
    prolongs, then that one's origins (a renewal of a renewal carries the same, so that heads do not grow).
    ``evidence``: envelopes about the bundle. ``policies``: envelopes of every policy version that the release and
    its promotion name.
    """

    apiVersion: Literal["bundlectl/v1"] = "bundlectl/v1"
    kind: Literal["Head"] = "Head"
    release: Envelope
    origins: list[Envelope] = Field(default=[], max_length=3)
    evidence: list[Envelope] = Field(default=[], max_length=64)
    policies: list[Envelope] = Field(min_length=1, max_length=4)
