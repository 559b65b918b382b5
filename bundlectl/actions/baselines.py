"""What an evaluation stands beside: the baseline, its signed result, and what was measured at this digest before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError

from bundlectl import __version__
from bundlectl.actions.context import Context
from bundlectl.actions.opening import load_bundle
from bundlectl.actions.releasing import stand
from bundlectl.evaluation.report import CaseResult, Report
from bundlectl.evaluation.suite import LoadedSuite
from bundlectl.model.attestation import EvaluationResult
from bundlectl.model.bindings import Bindings, Limits
from bundlectl.model.bundle import Bundle
from bundlectl.model.canonical import canonical, digest, parse_json
from bundlectl.model.errors import NotFound, UsageError, VerificationFailed
from bundlectl.model.reference import EnvironmentReference, parse_reference
from bundlectl.model.types import wrong_fields
from bundlectl.trust.evidence import gather_evidence
from bundlectl.trust.keyring import VerifiedKeyring


@dataclass(frozen=True)
class Baseline:
    """The bundle that a candidate is compared with.

    ``bindings``: those it is live with, or is to be measured with; None until they are chosen for a bundle that is
    named by itself. ``environment`` and ``since``: where it is live now, and since when.
    """

    bundle: Bundle
    bindings: Bindings | None = None
    environment: str | None = None
    since: datetime | None = None

    @property
    def run_with(self) -> Bindings:
        """The bindings that were chosen."""
        if self.bindings is None:
            raise ValueError("no bindings were chosen for the baseline yet")
        return self.bindings

    @property
    def bound(self) -> str:
        """Their digest."""
        return digest(canonical(self.run_with.form()))


@dataclass(frozen=True)
class Look:
    """A signed result and the rows behind it; ``report`` is None where its blob is not there any more."""

    result: EvaluationResult
    signers: frozenset[str]
    report: Report | None


def find_baseline(ctx: Context, reference: str, app: str) -> Baseline | None:
    """Find the baseline; None where an environment is named in which nothing is live yet.

    Raises:
        UsageError: it is a bundle of another app.
        VerificationFailed: what is live does not verify.
    """
    ref = parse_reference(reference)
    if isinstance(ref, EnvironmentReference) and ref.serial is None:
        _same_app(ref.app, app, reference)
        standing = stand(ctx, ref.app, ref.environment)
        if standing.live is None:
            return None
        release = standing.live.release
        return Baseline(ctx.registry.get_bundle(app, release.bundle), release.bindings, ref.environment, release.since)
    found, bundle = load_bundle(ctx, ref)
    _same_app(found, app, reference)
    return Baseline(bundle)


def _same_app(found: str, app: str, reference: str) -> None:
    if found != app:
        raise UsageError(
            f"The baseline {reference} is a bundle of {found}, and the candidate is one of {app}.",
            fix=f"Name one of {app}, e.g. --baseline {app}:prod",
        )


def fitted(bindings: Bindings, bundle: Bundle) -> Bindings:
    """Leave out what bindings say of models and indexes that a bundle does not have: it is the other one's."""
    models = bundle.components.models
    indexes = {use.index for use in bundle.components.retrieval.values()}
    return bindings.model_copy(
        update={
            "models": {name: bound for name, bound in bindings.models.items() if name in models},
            "indexes": {name: bound for name, bound in bindings.indexes.items() if name in indexes},
            "disabled_models": [name for name in bindings.disabled_models if name in models],
        }
    )


def measuring(bindings: Bindings) -> Bindings:
    """Give the bindings that an evaluation runs with: all of them but the limits, which are for customers."""
    return bindings.model_copy(update={"limits": Limits()})


def deterministic(bundle: Bundle, bindings: Bindings) -> bool:
    """Say whether the same question always gets the same answer: no model generates text, and no index moves."""
    parts = bundle.components
    used = {name: model for name, model in parts.models.items() if name not in bindings.disabled_models}
    return all(model.provider == "extractive" for model in used.values()) and all(
        use.snapshot != "following" for use in parts.retrieval.values()
    )


def looks(ctx: Context, keyring: VerifiedKeyring, app: str, bundle: str, loaded: LoadedSuite) -> list[Look]:
    """Give the signed results of a suite of that name at a digest, the oldest first.

    Only whole runs are looks: part of a suite decides nothing, so nothing was learned from it that could be chosen.
    """
    found = sorted(_results(ctx, keyring, app, bundle, loaded.suite.name), key=lambda item: item[0].finished)
    return [Look(result, signers, _report(ctx, app, bundle, result)) for result, signers in found if result.complete]


def looks_taken(ctx: Context, keyring: VerifiedKeyring, app: str, bundle: str, suite: str, actor: str) -> int:
    """Count the looks that somebody signed for, of a suite of that name at a digest."""
    found = _results(ctx, keyring, app, bundle, suite)
    return sum(1 for result, signers in found if result.complete and actor in signers)


def same_exam(look: Look, loaded: LoadedSuite, bindings: str) -> bool:
    """Say whether a look measured what this run measures, so that their rows may be pooled."""
    return (look.result.suite_digest, look.result.dataset_digest, look.result.bindings) == (
        loaded.suite_digest,
        loaded.dataset_digest,
        bindings,
    )


def stored_rows(
    ctx: Context, keyring: VerifiedKeyring, app: str, baseline: Baseline, loaded: LoadedSuite
) -> list[CaseResult] | None:
    """Give the rows of the baseline's own signed result, where measuring again could find nothing else.

    That is: no provider and no index of it can answer differently, the same version measured it by the same suite,
    dataset and bindings, every row has its scores, and the report is still there.
    """
    if not deterministic(baseline.bundle, baseline.run_with):
        return None
    for look in reversed(looks(ctx, keyring, app, baseline.bundle.digest, loaded)):
        if (
            look.report is None
            or look.result.tool_version != __version__
            or not same_exam(look, loaded, baseline.bound)
        ):
            continue
        if all(row.error is None for row in look.report.cases):
            wanted = {case.id for case in loaded.chosen}
            return [row for row in look.report.cases if row.id in wanted]
    return None


def candidates_tried(
    ctx: Context, keyring: VerifiedKeyring, app: str, suite: str, since: datetime, candidate: str
) -> int:
    """Count the bundles that were evaluated by a suite since a moment, the candidate among them."""
    tried = {candidate}
    for bundle in ctx.registry.bundles(app):
        if any(result.finished >= since for result, _ in _results(ctx, keyring, app, bundle, suite)):
            tried.add(bundle)
    return len(tried)


def rows_of(found: Sequence[Look]) -> list[CaseResult]:
    """Give the candidates' rows of looks, errors left out: they say nothing about the bundle."""
    return [row for look in found if look.report for row in look.report.cases if row.error is None]


def baseline_rows_of(found: Sequence[Look], bundle: str, bindings: str) -> list[CaseResult]:
    """Give the rows of one baseline in looks, errors left out."""
    return [
        row
        for look in found
        if look.report and (beside := look.report.baseline) and (beside.bundle, beside.bindings) == (bundle, bindings)
        for row in beside.cases
        if row.error is None
    ]


def _results(
    ctx: Context, keyring: VerifiedKeyring, app: str, bundle: str, suite: str
) -> Iterator[tuple[EvaluationResult, frozenset[str]]]:
    """Give the results of a suite that evaluators signed, each with who did."""
    envelopes = [envelope for kind, _, envelope in ctx.registry.attestations(app, bundle) if kind == "evaluation"]
    counted, _ = gather_evidence(envelopes, bundle, app, None, keyring)
    seen: set[str] = set()
    for item in counted:
        # One statement in two envelopes, signed again, is one look.
        if isinstance(item.predicate, EvaluationResult) and item.payload_digest not in seen:
            seen.add(item.payload_digest)
            if item.predicate.suite == suite:
                yield item.predicate, item.signers


def _report(ctx: Context, app: str, bundle: str, result: EvaluationResult) -> Report | None:
    if result.report is None:
        return None
    try:
        data = ctx.registry.get_blob(app, result.report)
    except NotFound:
        return None
    what = f"the report {result.report}"
    try:
        report = Report.model_validate(parse_json(data, what=what), by_alias=True, by_name=False)
    except ValidationError as error:
        raise VerificationFailed(
            f"{what} does not have the form this version knows.", why=wrong_fields(error)
        ) from error
    if (report.bundle, report.suite_digest, report.dataset_digest) != (
        bundle,
        result.suite_digest,
        result.dataset_digest,
    ):
        raise VerificationFailed(f"{what} is about something else than the signed result that names it.")
    return report
