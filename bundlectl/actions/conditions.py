"""What an evaluation is run with: the bindings of candidate and baseline, and the files of the suites."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bundlectl.actions.baselines import Baseline, find_baseline, fitted
from bundlectl.actions.context import Context
from bundlectl.actions.routing import without_addresses
from bundlectl.bundling.checks import find_suites
from bundlectl.bundling.documents import load_document
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle
from bundlectl.model.errors import UsageError
from bundlectl.model.reference import EnvironmentReference, SourceReference, parse_reference


def live_bindings(ctx: Context, reference: str, app: str) -> Bindings | None:
    """Give the bindings of an environment that is measured as it is live; None for any other reference."""
    ref = parse_reference(reference)
    if not isinstance(ref, EnvironmentReference) or ref.serial is not None:
        return None
    live = find_baseline(ctx, reference, app)
    return live.bindings if live is not None else None


def bindings_of(
    file: Path | None, bundle: Bundle, baseline: Baseline | None, live: Bindings | None
) -> tuple[Bindings, Baseline | None]:
    """Choose the bindings that candidate and baseline run with: the same, or a difference might be theirs."""
    if file is not None:
        named = load_document(file, Bindings)
        return named, baseline and replace(baseline, bindings=fitted(named, baseline.bundle))
    if baseline is not None and baseline.bindings is not None:
        return fitted(baseline.bindings, bundle), baseline
    if live is not None:
        return live, baseline and replace(baseline, bindings=fitted(live, baseline.bundle))
    return without_addresses(bundle), baseline and replace(baseline, bindings=without_addresses(baseline.bundle))


def named_suites(reference: str, bundle: Bundle) -> list[Path]:
    """Find the suites that a bundle names, beside its source: PATH/evals, or evals/ two folders up.

    Raises:
        UsageError: it names none, one of them is not there, or the reference is no source.
    """
    ref = parse_reference(reference)
    names = bundle.components.evaluation.suites
    if not isinstance(ref, SourceReference):
        raise UsageError("Which suite?", fix=f"Name it: --suite evals/{names[0] if names else 'NAME'}.yaml")
    if not names:
        raise UsageError("The bundle names no suite.", fix="Write evaluation: {suites: [NAME]} or add --suite FILE.")
    root = ref.path if ref.path.is_dir() else ref.path.parent
    return [_suite_file(root, name) for name in names]


def _suite_file(root: Path, name: str) -> Path:
    folder = find_suites(root)
    if folder is not None and (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    raise UsageError(
        f"The suite {name!r} was not found.",
        why=f"There is no evals/{name}.yaml in the source's folder, beside it or one folder up.",
        fix="Name its file: --suite FILE",
    )
