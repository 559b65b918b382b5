"""Why two answers differ, from their receipts alone (and their snapshots, when at hand).

Each row answers one of an on-call engineer's questions in three columns: did it change, did the change reach
the answer, and is it itself only the consequence of another row. A row that changed, reached the answer and is
no consequence is a cause. What a receipt cannot know is said, not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bundlectl.insight.kept import as_made, is_kept, note_of, unknown_where_lost
from bundlectl.insight.rows import (
    Row,
    Ternary,
    answered_by,
    component_of,
    disabled_models,
    rows_of,
    search_settings,
    shown,
    stopped_by,
)
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.documents import Snapshot
from bundlectl.model.receipt import Receipt
from bundlectl.model.types import Strict

__all__ = ["Explanation", "Row", "Side", "explain"]


class Side(Strict):
    """Which request and release one receipt records."""

    receipt: str
    time: str
    release: ReleaseRef
    route: str | None
    model: str | None
    refused: str | None
    degraded: str | None
    answer_digest: str | None
    notes: list[str] = []
    """What else is to be known of it: that it was kept, or pinned."""


class Explanation(Strict):
    """Two receipts held against each other. ``causes`` are the questions that explain a difference."""

    a: Side
    b: Side
    same_answer: Ternary
    rows: list[Row]
    causes: list[str]
    summary: str


def explain(
    a: Receipt,
    b: Receipt,
    *,
    snapshot_a: Snapshot | None = None,
    snapshot_b: Snapshot | None = None,
    made_a: Receipt | None = None,
    made_b: Receipt | None = None,
) -> Explanation:
    """Hold two receipts against each other.

    Args:
        a: the earlier answer's receipt.
        b: the later answer's receipt.
        snapshot_a: the snapshot that ``a`` searched, to name documents that are new, changed or gone.
        snapshot_b: the same for ``b``.
        made_a: where ``a`` is a kept answer: the receipt of the request that it was made for; None: it is gone.
        made_b: the same for ``b``.
    """
    sides = _side(a, made_a), _side(b, made_b)
    lost = [
        one.cached_from
        for one, made in ((a, made_a), (b, made_b))
        if one.cached_from is not None and is_kept(one) and made is None
    ]
    a, b = as_made(a, made_a), as_made(b, made_b)
    rows = unknown_where_lost(rows_of(a, b, snapshot_a, snapshot_b, lost), a, b, lost)
    rows = _traced_back(_linked(rows, a, b))
    same = _same_answer(a, b)
    causes = [row.question for row in rows if row.changed == "yes" and row.reached == "yes" and not row.consequence_of]
    if same == "yes":
        causes = []
    return Explanation(
        a=sides[0], b=sides[1], same_answer=same, rows=rows, causes=causes, summary=_summary(same, rows, causes)
    )


# ---------------------------------------------------------------- consequences


def _linked(rows: Sequence[Row], a: Receipt, b: Receipt) -> list[Row]:
    """Name, for each row that changed, the rows that it follows from."""
    by_name = {row.question: row for row in rows}
    links = _links(by_name, a, b)
    stops = _stops(a, b)
    linked = []
    for row in rows:
        stop = stops.get(row.question)
        if stop is not None and row.changed == "yes" and row.question != stop:
            why = f"One of the requests ended before: {stop}."
            row = row.model_copy(update={"consequence_of": [stop], "why": why})
        elif row.changed == "yes" and links.get(row.question):
            row = row.model_copy(update={"consequence_of": links[row.question]})
        linked.append(row)
    return linked


def _stops(a: Receipt, b: Receipt) -> dict[str, str]:
    """Give, for each question whose stage only one of the requests reached, the question that ended the other."""
    ends = (stopped_by(a), stopped_by(b))
    if ends[0] == ends[1]:
        return {}
    found: dict[str, str] = {}
    absent = {
        "retrieved context": (a.retrieval is None, b.retrieval is None),
        "documents": (a.retrieval is None, b.retrieval is None),
        "prompt": (a.prompt_digest is None, b.prompt_digest is None),
        "routing": (a.route is None, b.route is None),
        "model": (answered_by(a) is None, answered_by(b) is None),
        "guardrail policy": (not a.guards, not b.guards),
        "output validation": (a.validation is None, b.validation is None),
        "access policy": (a.access is None, b.access is None),
    }
    for question, (first, second) in absent.items():
        end = ends[0] if first else ends[1]
        if first != second and end is not None:
            found[question] = end
    return found


def _links(by_name: Mapping[str, Row], a: Receipt, b: Receipt) -> dict[str, list[str]]:
    """Give what each row may follow from; a row whose own component differs stands for itself."""

    def own(name: str) -> bool:
        return component_of(a, b, name)[2]

    def of(*names: str, reached: bool = False) -> list[str]:
        return [n for n in names if by_name[n].changed == "yes" and (not reached or by_name[n].reached == "yes")]

    links: dict[str, list[str]] = {}
    if by_name["retrieved context"].reached == "yes" and not search_settings(a, b):
        # The component's digest moves with a pinned snapshot too, so it is a cause only where no other is found.
        upstream = of("documents", "question", "identity", "embedding")
        links["retrieved context"] = [n for n in upstream if by_name[n].reached != "no"]
    if by_name["documents"].reached == "yes" and by_name["embedding"].reached == "yes":
        links["documents"] = ["embedding"]
    if not own("prompts"):
        links["prompt"] = [*of("retrieved context", reached=True), *of("question"), *_of_task(a, b)]
    moved = a.route != b.route or disabled_models(a) != disabled_models(b)
    if not own("models"):
        links["model"] = [*(of("routing") if moved else []), *of("health", reached=True)]
    if not own("routes") and disabled_models(a) == disabled_models(b):
        links["routing"] = of("health", "identity", "prompt")
    if not own("guardrails"):
        links["guardrail policy"] = [*of("question", "identity"), *of("retrieved context", "model", reached=True)]
        # Without any of these the model wrote something else of itself: its row says that this is not knowable.
        links["guardrail policy"] = links["guardrail policy"] or ["model"]
    if not own("output"):
        links["output validation"] = of("model", "prompt", "retrieved context", reached=True) or ["model"]
    if not own("access"):
        links["access policy"] = of("identity")
    if by_name["health"].changed == "yes":
        links["health"] = of("routing") if disabled_models(a) != disabled_models(b) else []
    return links


def _of_task(a: Receipt, b: Receipt) -> list[str]:
    return ["identity"] if (a.task, a.response_format) != (b.task, b.response_format) else []


def _traced_back(rows: Sequence[Row]) -> list[Row]:
    """Let what reached the answer through another row have reached it: a prompt that was too long for a route did."""
    by_name = {row.question: row for row in rows}
    waiting = [row for row in rows if row.changed == "yes" and row.reached == "yes"]
    while waiting:
        row = waiting.pop()
        upstream = [by_name[name] for name in row.consequence_of]
        if len(upstream) == 1 and upstream[0].changed == "yes" and upstream[0].reached != "yes":
            found = upstream[0].model_copy(update={"reached": "yes", "why": f"Through: {row.question}."})
            by_name[found.question] = found
            waiting.append(found)
    return [by_name[row.question] for row in rows]


def _same_answer(a: Receipt, b: Receipt) -> Ternary:
    if a.answer_digest is not None or b.answer_digest is not None:
        return "yes" if a.answer_digest == b.answer_digest else "no"
    ends = [
        (
            receipt.refused.code if receipt.refused else None,
            receipt.error.get("error") if receipt.error else None,
        )
        for receipt in (a, b)
    ]
    return "yes" if ends[0] == ends[1] else "no"


def _summary(same: Ternary, rows: Sequence[Row], causes: Sequence[str]) -> str:
    if same == "yes":
        silent = [row.question for row in rows if row.changed == "yes"]
        if not silent:
            return "The answers are the same, and so is everything that made them."
        return f"The answers are the same, although these changed: {shown(silent)}."
    if not causes:
        unknown = [row.question for row in rows if row.reached == "unknown"]
        if unknown:
            return f"Nothing recorded explains the difference. Not knowable from receipts: {shown(unknown)}."
        return "Nothing recorded explains the difference; sampling in the model may."
    by_name = {row.question: row for row in rows}
    told = "; ".join(f"{name} ({by_name[name].what})" for name in causes)
    return f"The answer changed because of: {told}."


def _side(receipt: Receipt, made: Receipt | None) -> Side:
    notes = [note for note in (note_of(receipt, made), _pin_of(receipt)) if note is not None]
    return Side(
        receipt=receipt.id,
        time=receipt.form()["time"],
        release=receipt.release,
        route=receipt.route,
        model=answered_by(as_made(receipt, made)),
        refused=receipt.refused.code if receipt.refused else None,
        degraded=receipt.degraded.reason if receipt.degraded else None,
        answer_digest=receipt.answer_digest,
        notes=notes,
    )


def _pin_of(receipt: Receipt) -> str | None:
    if receipt.pinned is None or receipt.pinned.to == "head":
        return None
    return f"pinned by its caller to the rollback target of release {receipt.pinned.serial}, which was live"
