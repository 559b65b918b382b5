"""diff and explain: what differs between two bundles or releases, and why two answers differ."""

from __future__ import annotations

from bundlectl.actions.context import Context
from bundlectl.actions.index import section_changes
from bundlectl.actions.opening import live_or_former, load_bundle, open_trust
from bundlectl.actions.receipts import find_receipt
from bundlectl.insight.diff import BundleDiff, DocumentChange, ScoreChange, diff_bundles, diff_scores
from bundlectl.insight.explain import Explanation
from bundlectl.insight.explain import explain as explain_receipts
from bundlectl.insight.kept import KeptAnswer, is_kept, note_of
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.documents import Snapshot
from bundlectl.model.errors import NotFound, UsageError
from bundlectl.model.receipt import Receipt
from bundlectl.model.reference import EnvironmentReference, Reference, SourceReference, parse_reference
from bundlectl.registry.pointers import read_snapshot
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.keyring import VerifiedKeyring


def diff(ctx: Context, a: str, b: str) -> BundleDiff:
    """Compare two bundles, releases or sources.

    Args:
        ctx: the context.
        a: the earlier: a stored bundle, ``APP:ENV``, ``APP:ENV@SERIAL`` or a source path.
        b: the later, likewise.

    Raises:
        NotFound: nothing is stored under a reference.
    """
    first, second = parse_reference(a), parse_reference(b)
    app, ours = load_bundle(ctx, first)
    other, theirs = load_bundle(ctx, second)
    if app != other:
        raise UsageError(f"{a} is of {app} and {b} of {other}.", fix="Compare bundles of one app.")
    notes: list[str] = []
    bindings = _bindings(ctx, first, second)
    return diff_bundles(
        ours,
        theirs,
        bindings=bindings,
        documents=_documents(ctx, app, ours, theirs, notes),
        scores=_scores(ctx, app, (first, ours), (second, theirs), notes),
        notes=notes,
    )


def _bindings(ctx: Context, first: Reference, second: Reference) -> tuple[Bindings, Bindings] | None:
    if isinstance(first, EnvironmentReference) and isinstance(second, EnvironmentReference):
        return live_or_former(ctx, first).release.bindings, live_or_former(ctx, second).release.bindings
    return None


def _documents(ctx: Context, app: str, a: Bundle, b: Bundle, notes: list[str]) -> list[DocumentChange]:
    """Compare the snapshots that both bundles pin, use by use."""
    changes: list[DocumentChange] = []
    ours, theirs = a.components.retrieval, b.components.retrieval
    for use in sorted(ours.keys() & theirs.keys()):
        first, second = ours[use].snapshot, theirs[use].snapshot
        if first == second:
            continue
        if "following" in (first, second):
            notes.append(f"{use}: one side follows its index, so its documents are not part of the bundle")
            continue
        try:
            changes += section_changes(ctx, app, first, second)
        except NotFound as error:
            notes.append(f"{use}: documents not compared: {error.what}")
    return changes


def _scores(
    ctx: Context, app: str, a: tuple[Reference, Bundle], b: tuple[Reference, Bundle], notes: list[str]
) -> list[ScoreChange]:
    if all(isinstance(ref, SourceReference) for ref, _ in (a, b)):
        return []
    try:
        keyring = open_trust(ctx)
    except UsageError as error:
        notes.append(f"scores not compared: {error.what}")
        return []
    results = [_results(ctx, app, bundle, keyring) for _, bundle in (a, b)]
    if (results[0] and not results[1]) or (results[1] and not results[0]):
        notes.append("scores: only one side was evaluated")
    return [change for change in diff_scores(results[0], results[1]) if change.a != change.b]


def _results(ctx: Context, app: str, bundle: Bundle, keyring: VerifiedKeyring) -> list[EvaluationResult]:
    envelopes = [
        envelope for kind, _, envelope in ctx.registry.attestations(app, bundle.digest) if kind == "evaluation"
    ]
    counted, _ = gather_evidence(envelopes, bundle.digest, app, None, keyring)
    return [item.predicate for item in counted if isinstance(item.predicate, EvaluationResult)]


def explain(ctx: Context, a: str, b: str | None = None) -> Explanation | KeptAnswer | Receipt:
    """Say why two answers differ; with one receipt, give it, and what its answer was made by where it was kept.

    Raises:
        NotFound: a receipt is not there.
    """
    first = find_receipt(ctx, a)
    made = _made_by(ctx, first)
    if b is None:
        note = note_of(first, made)
        return first if note is None else KeptAnswer(receipt=first, made_by=made, note=note)
    second = find_receipt(ctx, b)
    made_b = _made_by(ctx, second)
    return explain_receipts(
        first,
        second,
        snapshot_a=_snapshot(ctx, made or first),
        snapshot_b=_snapshot(ctx, made_b or second),
        made_a=made,
        made_b=made_b,
    )


def _made_by(ctx: Context, receipt: Receipt) -> Receipt | None:
    """Give the receipt of the request that a kept answer was made for; None: it was not kept, or that is gone."""
    if receipt.cached_from is None or not is_kept(receipt):
        return None
    try:
        return find_receipt(ctx, receipt.cached_from)
    except NotFound:
        return None


def _snapshot(ctx: Context, receipt: Receipt) -> Snapshot | None:
    """Give the snapshot a receipt's search used; without it documents are told by the receipt's own chunks."""
    if receipt.retrieval is None:
        return None
    try:
        return read_snapshot(ctx.registry, receipt.release.app, receipt.retrieval.snapshot)
    except NotFound:
        return None
