"""What a kept answer (``cache: hit``) was made by: the receipt of the request that it was made for, where it is here.

A hit's own receipt ends at the input guard: nothing was searched, rendered or asked for it. Those parts are the earlier
request's, of the same bundle, bindings, tenant, role, scopes and snapshot, and are explained from its receipt. Where
that is gone they are not known, and it is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bundlectl.insight.rows import Row, component_of
from bundlectl.model.receipt import Receipt
from bundlectl.model.types import Strict, format_time

MADE_THERE: Final = {
    "model": "models",
    "prompt": "prompts",
    "retrieved context": "retrieval",
    "documents": None,
    "guardrail policy": "guardrails",
    "output validation": "output",
    "health": None,
}
"""The questions that only the earlier receipt answers, each with the component that either receipt names."""


class KeptAnswer(Strict):
    """One answer that was kept: its own receipt, and that of the request it was made for, unless that is gone."""

    receipt: Receipt
    made_by: Receipt | None = None
    note: str


def is_kept(receipt: Receipt) -> bool:
    """Say whether an answer was made for another request, whose receipt is named."""
    return receipt.cache == "hit" and receipt.cached_from is not None


def as_made(receipt: Receipt, made: Receipt | None) -> Receipt:
    """Give a receipt with what its kept answer was made by; as it is where nothing was kept, or that is gone."""
    if made is None or not is_kept(receipt):
        return receipt
    return receipt.model_copy(
        update={
            "route_why": made.route_why,
            "attempts": made.attempts,
            "retrieval": made.retrieval,
            "prompt_digest": made.prompt_digest,
            "prompt_tokens": made.prompt_tokens,
            "prompt_reached_model": made.prompt_reached_model,
            "guards": [*receipt.guards, *(guard for guard in made.guards if guard.side == "output")],
            "validation": made.validation,
        }
    )


def note_of(receipt: Receipt, made: Receipt | None) -> str | None:
    """Say where the parts of an answer come from; None where all of them are its own."""
    if not is_kept(receipt):
        return None
    if made is None:
        return (
            f"a kept answer, made for request {receipt.cached_from}, whose receipt is not here: what was retrieved, "
            "rendered and asked for it is not known"
        )
    return (
        f"a kept answer: retrieval, prompt, attempts, output guard and validation are those of receipt {made.id} of "
        f"{format_time(made.time)}, which it was made for"
    )


def unknown_where_lost(rows: Sequence[Row], a: Receipt, b: Receipt, lost: Sequence[str]) -> list[Row]:
    """Take back what rows say of parts that a receipt which is gone would have told; ``lost``: the ids of those."""
    if not lost:
        return list(rows)
    why = f"The receipt of the request that a kept answer was made for is not here: {', '.join(lost)}."
    found: list[Row] = []
    for row in rows:
        if row.question in MADE_THERE:
            name = MADE_THERE[row.question]
            old, new, differs = component_of(a, b, name) if name is not None else ("", "", False)
            what = f"{name} {old} -> {new}" if differs else "not recorded for a kept answer"
            row = Row(
                question=row.question, changed="yes" if differs else "unknown", what=what, reached="unknown", why=why
            )
        elif row.question == "identity" and row.changed == "yes":
            row = row.model_copy(update={"reached": "unknown", "why": why})
        found.append(row)
    return found
