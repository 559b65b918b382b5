"""judge calibrate: hold a judge against what people said of the same answers, and keep how well they agree."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic_core import to_json

from bundlectl import __version__
from bundlectl.actions.context import Context
from bundlectl.actions.judging import judge_bindings, open_judges
from bundlectl.evaluation.calibration import Calibration, Judged, figures, judged_options, weakness
from bundlectl.evaluation.judges import models_of
from bundlectl.evaluation.labels import Labels, read_labels
from bundlectl.evaluation.pace import Budget
from bundlectl.evaluation.scorers.judge import Judge
from bundlectl.evaluation.scorers.judged import JudgedScorer, Sense
from bundlectl.evaluation.scorers.score import Weighed, total
from bundlectl.evaluation.scorers.table import make_scorers
from bundlectl.evaluation.suite import LoadedSuite, read_suite
from bundlectl.model.bindings import ModelBinding
from bundlectl.model.errors import UsageError
from bundlectl.model.types import Strict

_SENSES: Mapping[str, Sense] = {"good": "good", "bad": "bad", "tie": "neither"}


class Calibrated(Strict):
    """One scorer's judge, held against people. ``weakness``: why it may not decide; absent: it may."""

    suite: str
    scorer: str
    file: str
    record: Calibration
    digest: str
    weakness: str | None = None
    usd: float | None = None


def calibrate(
    ctx: Context,
    suite: Path,
    *,
    scorers: Sequence[str] = (),
    bindings_file: Path | None = None,
    max_cost: float | None = None,
) -> list[Calibrated]:
    """Let each judge score the answers that people labelled, and write the record beside the suite.

    Args:
        ctx: the context; nothing is signed.
        suite: the suite's file.
        scorers: keys of the scorers to calibrate; by default each that names labels and a calibration.
        bindings_file: where the judges are reached.
        max_cost: US dollars after which no further answer is shown to a judge; then nothing is written.

    Raises:
        SourceError: suite, dataset or labels are not right.
        UsageError: a scorer is none that can be calibrated, its judge has no address, or the cost was reached.
    """
    loaded = read_suite(suite)
    chosen = _chosen(loaded, scorers)
    bindings = judge_bindings(bindings_file, loaded.suite)
    return asyncio.run(_calibrate(ctx, loaded, chosen, bindings, Budget(max_cost)))


def _chosen(loaded: LoadedSuite, scorers: Sequence[str]) -> list[str]:
    options = judged_options(loaded.suite)
    ready = [key for key, option in options.items() if option.labels is not None and option.calibration is not None]
    for key in scorers:
        if key not in options:
            raise UsageError(
                f"Suite {loaded.suite.name} has no scorer {key!r} that asks a judge.",
                fix=f"It has {', '.join(options) or 'none'}.",
            )
        if key not in ready:
            raise UsageError(
                f"The scorer {key} names no labels, or no file for the calibration.",
                fix="Write both under its options: labels: FILE.jsonl, calibration: FILE.json",
            )
    if not ready:
        raise UsageError(
            f"No scorer of suite {loaded.suite.name} can be calibrated.",
            fix="Name the people's labels and a file for the record: options: {labels: FILE.jsonl, calibration: "
            "FILE.json}",
        )
    return list(scorers) or ready


async def _calibrate(
    ctx: Context, loaded: LoadedSuite, chosen: Sequence[str], bindings: Mapping[str, ModelBinding], budget: Budget
) -> list[Calibrated]:
    cases = {case.id: case for case in loaded.cases}
    found = []
    async with open_judges(ctx, loaded.suite, bindings) as judges:
        made = make_scorers(loaded.suite.scorers, None, loaded.code, judges)
        for key in chosen:
            scorer = made[key]
            if not isinstance(scorer, JudgedScorer) or scorer.judge is None:
                raise UsageError(
                    f"The judge of scorer {key} has no address.",
                    fix="Bind it: --judge-bindings FILE, with models: {NAME: {base_url: …, credential: env:NAME}}",
                )
            options = scorer.options
            labels = read_labels(loaded.folder, options.labels or "", cases, paired=scorer.paired)
            found.append(await _one(ctx, loaded, key, scorer, labels, judges[options.judge], budget))
    return found


async def _one(
    ctx: Context,
    loaded: LoadedSuite,
    key: str,
    scorer: JudgedScorer,
    labels: Labels,
    judge: Judge,
    budget: Budget,
) -> Calibrated:
    said: list[Weighed | None] = [None] * len(labels.exhibits)
    left = iter(range(len(labels.exhibits)))
    with ctx.reporter.progress(f"{key} by {judge.name}", len(labels.exhibits)) as bar:

        async def work() -> None:
            for number in left:
                if not budget.open:
                    return
                weighed = said[number] = await scorer.examine(labels.exhibits[number])
                budget.charge(weighed.usd)
                bar.advance(note=labels.labels[number].case)

        await asyncio.gather(*(work() for _ in range(judge.concurrency)))
    whole = [weighed for weighed in said if weighed is not None]
    if len(whole) < len(said):
        why = f"{budget.spent:.2f} USD were spent" if not budget.unknown else "what the judge costs is not known"
        raise UsageError(
            f"Stopped after {len(whole)} of {len(said)} labels, and nothing was written.",
            why=f"{why}, and --max-cost allows {budget.limit or 0:g}.",
            fix="Allow more, or leave --max-cost out.",
        )
    pairs = [
        Judged(_SENSES[label.label], scorer.sense(one.score.value) if one.score.value is not None else None)
        for label, one in zip(labels.labels, whole, strict=True)
    ]
    record = Calibration(
        scorer=key,
        identity=dict(scorer.identity),
        models=sorted(models_of(one.score for one in whole)),
        labels=labels.digest,
        good=scorer.options.good,
        figures=figures(pairs),
        tool_version=__version__,
        time=ctx.clock(),
    )
    file = loaded.folder / (scorer.options.calibration or "")
    _write(file, record)
    return Calibrated(
        suite=loaded.suite.name,
        scorer=key,
        file=str(file),
        record=record,
        digest=record.digest,
        weakness=weakness(record.figures),
        usd=total([one.usd for one in whole]),
    )


def _write(file: Path, record: Calibration) -> None:
    """Write the record whole or not at all."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}-")
        with os.fdopen(handle, "wb") as out:
            out.write(to_json(record.form(), indent=2) + b"\n")
        Path(name).replace(file)
    except OSError as error:
        raise UsageError(f"The calibration {file} cannot be written.", why=error.strerror or str(error)) from error
