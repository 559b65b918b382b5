"""receipts export: receipts of production become cases of a dataset, with the inputs that the caller still has.

A receipt holds no text, so the inputs come from elsewhere: the caller's own log, by the receipt's id. Each one is
checked against the receipt's keyed digest before it becomes a case, so that a case is what was really asked.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from bundlectl.actions.context import Context
from bundlectl.actions.routing import RECEIPT_KEY_FILE, input_key, receipts_folder
from bundlectl.bundling.messages import problems_of
from bundlectl.bundling.yaml import Document, Place
from bundlectl.evaluation.dataset import dataset_digest
from bundlectl.model.canonical import parse_json
from bundlectl.model.errors import BackendUnavailable, NotFound, Problem, SourceError, UsageError, VerificationFailed
from bundlectl.model.receipt import Receipt
from bundlectl.model.suite import Case, Expected
from bundlectl.model.types import Digest, Strict, seconds
from bundlectl.receipts.reader import between
from bundlectl.router.contract import input_digest

MAX_LINE = 1024 * 1024
MAX_PROBLEMS = 50
ANY = "any"


class ReceiptInput(Strict):
    """A line of the inputs: what was asked, by the id of its receipt; and what a right answer shows, if one knows."""

    receipt: str
    input: dict[str, Any] = Field(min_length=1)
    expected: Expected = Expected()
    tags: list[str] = []
    split: str | None = None
    group: str | None = None


class Unjoined(Strict):
    """A receipt that became no case."""

    receipt: str
    why: str


class Exported(Strict):
    """What receipts export returns.

    ``receipts``: how many matched. ``repeated``: of those, how many asked the same as a later one for the same caller.
    ``open``: cases that expect nothing yet, so that few scorers apply.
    """

    file: str
    receipts: int
    cases: int
    repeated: int
    open: int
    unjoined: list[Unjoined]
    dataset_digest: Digest


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which receipts. ``refused``: a code, or ``any``. Of the last three, those that are given are alternatives."""

    since: datetime | None = None
    until: datetime | None = None
    task: str | None = None
    tenant: str | None = None
    environment: str | None = None
    refused: str | None = None
    degraded: bool = False
    error: bool = False

    def __call__(self, receipt: Receipt) -> bool:
        """Say whether a receipt is wanted, its time aside."""
        for value, its in (
            (self.task, receipt.task),
            (self.tenant, receipt.tenant),
            (self.environment, receipt.release.environment),
        ):
            if value is not None and value != its:
                return False
        if self.refused is None and not self.degraded and not self.error:
            return True
        code = receipt.refused.code if receipt.refused is not None else None
        return (
            (self.refused is not None and code is not None and self.refused in (ANY, code))
            or (self.degraded and receipt.degraded is not None)
            or (self.error and receipt.error is not None)
        )


def export_cases(
    ctx: Context, app: str, target: Path, inputs: Path, wanted: Wanted, *, force: bool = False
) -> Exported:
    """Write the receipts' requests as the cases of a dataset.

    Args:
        ctx: the context.
        app: whose receipts.
        target: the dataset to write.
        inputs: JSON Lines of :class:`ReceiptInput`.
        wanted: which receipts.
        force: replace a file that is there.

    Raises:
        NotFound: no receipt matches.
        SourceError: a line of the inputs is wrong.
        UsageError: the target is there, receipts of several tasks match, or none of them could be joined.
    """
    if target.exists() and not force:
        raise UsageError(f"{target} is there already.", fix="Name another file, or replace it with --force.")
    found = _receipts(ctx, app, wanted)
    given = _inputs(inputs, {receipt.id for receipt in found})
    cases, unjoined, repeated = _joined(found, given, _key(ctx))
    for one in unjoined[:10]:
        ctx.reporter.warn(f"receipt {one.receipt}: {one.why}")
    if len(unjoined) > 10:
        ctx.reporter.warn(f"and {len(unjoined) - 10} more receipts could not be joined")
    if not cases:
        raise UsageError(
            f"None of {len(found)} receipts could be joined with an input.",
            why=unjoined[0].why,
            fix=f'Each line of {inputs} is {{"receipt": ID, "input": {{…}}}}, with the input as it was sent.',
        )
    _write(target, "".join(json.dumps(case.form(), ensure_ascii=False) + "\n" for case in cases).encode(), force)
    expecting_nothing = sum(not case.expected.form() for case in cases)
    return Exported(
        file=str(target),
        receipts=len(found),
        cases=len(cases),
        repeated=repeated,
        open=expecting_nothing,
        unjoined=unjoined,
        dataset_digest=dataset_digest(cases),
    )


def moment(text: str, now: datetime) -> datetime:
    """Read a time: ``2026-11-23``, ``2026-11-23T18:00:00Z``, or a duration before now such as ``24h``.

    Raises:
        UsageError: it is none of them.
    """
    try:
        return now - timedelta(seconds=seconds(text))
    except ValueError:
        pass  # no duration: a time, then
    try:
        found = datetime.fromisoformat(text if "T" in text else f"{text}T00:00:00Z")
    except ValueError as error:
        raise UsageError(f"{text!r} is no time.", fix="Write 2026-11-23, 2026-11-23T18:00:00Z, or 24h.") from error
    if found.tzinfo is None:
        raise UsageError(f"{text!r} does not say its zone.", fix=f"Write {text}Z for UTC.")
    return found


def _receipts(ctx: Context, app: str, wanted: Wanted) -> list[Receipt]:
    folder = receipts_folder(ctx, app)

    def damaged(file: Path, line: int) -> None:
        ctx.reporter.warn(f"{file}:{line} is no receipt and is passed over")

    found = list(between(folder, wanted.since, wanted.until, keep=wanted, on_damage=damaged))
    if not found:
        raise NotFound(
            f"No receipt of {app} matches.",
            why=f"Receipts were looked for in {folder}.",
            fix="See what there is: bundlectl receipts list",
        )
    tasks = sorted({receipt.task for receipt in found})
    if len(tasks) > 1:
        raise UsageError(
            f"The receipts are of {len(tasks)} tasks: {', '.join(tasks)}.",
            why="A suite measures one task, and so its dataset asks one.",
            fix=f"Choose one: --task {tasks[0]}",
        )
    return sorted(found, key=lambda receipt: receipt.time)


def _key(ctx: Context) -> bytes:
    file = ctx.workspace / RECEIPT_KEY_FILE
    if not file.is_file():
        raise UsageError(
            f"The receipt key {file} is not there.",
            why="Without it nobody can tell whether an input is the one that a receipt is about.",
            fix="Run this in the workspace of the server that wrote the receipts.",
        )
    return input_key(ctx)


def _inputs(file: Path, wanted: set[str]) -> dict[str, list[ReceiptInput]]:
    """Read the lines of the wanted receipts."""
    found: dict[str, list[ReceiptInput]] = {}
    problems: list[Problem] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(iter(lambda: lines.readline(MAX_LINE + 1), b""), start=1):
                if len(problems) >= MAX_PROBLEMS:
                    break
                if not line.strip():
                    continue
                if len(line) > MAX_LINE:
                    problems.append(Problem(str(file), number, "the line is too long", f"at most {MAX_LINE:,} bytes"))
                    break
                one = _input(line, number, file, problems)
                if one is not None and one.receipt in wanted:
                    found.setdefault(one.receipt, []).append(one)
    except OSError as error:
        raise UsageError(f"The inputs {file} cannot be read.", why=str(error)) from error
    if problems:
        raise SourceError(problems)
    return found


def _input(line: bytes, number: int, file: Path, problems: list[Problem]) -> ReceiptInput | None:
    try:
        value = parse_json(line, what=f"{file}:{number}")
        return ReceiptInput.model_validate(value, by_alias=True, by_name=False)
    except VerificationFailed as error:
        problems.append(Problem(str(file), number, f"this line is not JSON: {error.why or error.what}"))
    except ValidationError as error:
        problems += problems_of(error, Document(str(file), value, {(): Place(number, 1)}, {}, []), ReceiptInput)
    return None


def _joined(
    receipts: Iterable[Receipt], given: Mapping[str, list[ReceiptInput]], key: bytes
) -> tuple[list[Case], list[Unjoined], int]:
    """Make a case of each receipt whose input is there and is the one; of equal requests the newest."""
    cases: dict[tuple[Any, ...], Case] = {}
    unjoined: list[Unjoined] = []
    joined = 0
    for receipt in receipts:
        found = _the_input(receipt, given.get(receipt.id, []), key)
        if isinstance(found, str):
            unjoined.append(Unjoined(receipt=receipt.id, why=found))
            continue
        joined += 1
        same = (receipt.input_digest, receipt.tenant, receipt.role, tuple(receipt.scopes), receipt.profile)
        cases.pop(same, None)
        cases[same] = _case(receipt, found)
    return list(cases.values()), unjoined, joined - len(cases)


def _the_input(receipt: Receipt, given: list[ReceiptInput], key: bytes) -> ReceiptInput | str:
    if not given:
        return "there is no input for it"
    digests = [input_digest(one.input, key) for one in given]
    for one, digest in zip(given, digests, strict=True):
        if digest == receipt.input_digest:
            return one
    if digests[0].partition(":")[0] != receipt.input_digest.partition(":")[0]:
        return "its input digest was made with another receipt key, so the input cannot be checked"
    return "the input is not the one that was sent: its digest differs"


def _case(receipt: Receipt, found: ReceiptInput) -> Case:
    outcome = (
        f"refused:{receipt.refused.code}"
        if receipt.refused is not None
        else "error"
        if receipt.error is not None
        else "degraded"
        if receipt.degraded is not None
        else "answered"
    )
    return Case(
        id=f"receipt-{receipt.id}",
        input=found.input,
        tenant=receipt.tenant,
        role=receipt.role,
        scopes=receipt.scopes,
        profile=receipt.profile,
        latency_class="batch" if receipt.latency_class == "batch" else "interactive",
        tags=list(dict.fromkeys(["receipt", outcome, *found.tags])),
        split=found.split,
        group=found.group,
        expected=found.expected,
    )


def _write(target: Path, data: bytes, force: bool) -> None:
    """Make the file appear whole. It holds what users wrote, so only its owner may read it."""
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".cases-")  # mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if force:
                Path(name).replace(target)
            else:
                os.link(name, target)
        finally:
            Path(name).unlink(missing_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{target} is there already.", fix="Name another file, or replace it with --force.") from error
    except OSError as error:
        raise BackendUnavailable(f"{target} cannot be written.", why=str(error)) from error
