"""Why two answers differ, from their receipts alone (and their snapshots, when at hand).

Each row answers one of an on-call engineer's questions in three columns: did it change, did the change reach
the answer, and is it itself only the consequence of another row. A row that changed, reached the answer and is
no consequence is a cause. What a receipt cannot know is said, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from bundlectl.model.contract import ReleaseRef
from bundlectl.model.documents import Snapshot
from bundlectl.model.receipt import Receipt, UsedChunk
from bundlectl.model.types import Strict

Ternary = Literal["yes", "no", "unknown"]


class Row(Strict):
    """One question's answer. ``consequence_of`` names other rows by their ``question``."""

    question: str
    changed: Ternary
    what: str
    reached: Ternary
    why: str = ""
    consequence_of: list[str] = []


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


class Explanation(Strict):
    """Two receipts held against each other. ``causes`` are the questions that explain the difference."""

    a: Side
    b: Side
    same_answer: Ternary
    rows: list[Row]
    causes: list[str]
    summary: str


def explain(
    a: Receipt, b: Receipt, *, snapshot_a: Snapshot | None = None, snapshot_b: Snapshot | None = None
) -> Explanation:
    """Hold two receipts against each other.

    Args:
        a: the earlier answer's receipt.
        b: the later answer's receipt.
        snapshot_a: the snapshot that ``a`` searched, to name documents that are new, changed or gone.
        snapshot_b: the same for ``b``.
    """
    context = _context_row(a, b)
    rows = [
        _question_row(a, b),
        _identity_row(a, b),
        _access_row(a, b),
        _model_row(a, b),
        _prompt_row(a, b),
        context,
        _embedding_row(a, b),
        _documents_row(a, b, snapshot_a, snapshot_b),
        _guard_row(a, b),
        _routing_row(a, b),
        _validation_row(a, b),
        _cache_row(a, b),
        _health_row(a, b),
        _code_row(a, b),
    ]
    rows = _link(rows, a, b)
    same = _same_answer(a, b)
    causes = [row.question for row in rows if row.changed == "yes" and row.reached == "yes" and not row.consequence_of]
    return Explanation(
        a=_side(a), b=_side(b), same_answer=same, rows=rows, causes=causes, summary=_summary(same, rows, causes)
    )


# ---------------------------------------------------------------- the rows


def _question_row(a: Receipt, b: Receipt) -> Row:
    if a.input_digest == b.input_digest:
        return Row(question="question", changed="no", what="the same input", reached="no")
    keys = (a.input_digest.partition(":")[0], b.input_digest.partition(":")[0])
    if keys[0] != keys[1]:
        return Row(
            question="question",
            changed="unknown",
            what="the inputs were digested with different keys",
            reached="unknown",
            why="Input digests are keyed, so that short questions cannot be guessed from them.",
        )
    return Row(question="question", changed="yes", what="another input", reached="yes")


def _identity_row(a: Receipt, b: Receipt) -> Row:
    parts = _differences(
        ("tenant", a.tenant, b.tenant),
        ("role", a.role, b.role),
        ("scopes", ", ".join(a.scopes), ", ".join(b.scopes)),
        ("profile", a.profile, b.profile),
        ("task", a.task, b.task),
        ("latency class", a.latency_class, b.latency_class),
        ("response format", a.response_format, b.response_format),
    )
    if not parts:
        return Row(question="identity", changed="no", what=f"{a.tenant}/{a.role} in both", reached="no")
    reached: Ternary = "yes" if _chunks(a) != _chunks(b) or a.route != b.route or a.access != b.access else "unknown"
    return Row(question="identity", changed="yes", what="; ".join(parts), reached=reached)


def _access_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "access")
    decided = a.access != b.access or a.access_policies != b.access_policies
    what = "; ".join(
        _differences(("decision", a.access, b.access), ("access policies", component[0], component[1]))
        or [f"{a.access or 'not reached'} in both"]
    )
    changed: Ternary = "yes" if decided or component[2] else "no"
    return Row(
        question="access policy",
        changed=changed,
        what=what,
        reached="yes" if a.access != b.access else "no",
        why="" if a.access != b.access or changed == "no" else "Both requests were decided the same way.",
    )


def _model_row(a: Receipt, b: Receipt) -> Row:
    ours, theirs = _answered_by(a), _answered_by(b)
    component = _component(a, b, "models")
    parts = _differences(("answered by", ours, theirs), ("models", component[0], component[1]))
    if not parts:
        unknowable = ours is not None and "extractive" not in ours
        return Row(
            question="model",
            changed="unknown" if unknowable else "no",
            what=f"{ours or 'none'} in both",
            reached="unknown" if unknowable else "no",
            why="Weights can change behind one model id; a receipt cannot show it." if unknowable else "",
        )
    reached: Ternary = "yes" if ours != theirs else "unknown" if component[2] else "no"
    why = "" if ours != theirs else "The models component differs; the model that answered has the same id."
    if ours == theirs and ours is not None and "extractive" in ours and component[2]:
        reached, why = (
            "unknown",
            "The models component differs; its settings for the extractive model may be among it.",
        )
    return Row(question="model", changed="yes", what="; ".join(parts), reached=reached, why=why)


def _prompt_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "prompts")
    if not component[2] and a.prompt_digest == b.prompt_digest:
        return Row(question="prompt", changed="no", what="the same template and the same text", reached="no")
    parts = _differences(("template", component[0], component[1]))
    if a.prompt_digest != b.prompt_digest:
        parts.append("the rendered text differs")
    if b.prompt_reached_model is False and a.prompt_reached_model is not True:
        return Row(
            question="prompt",
            changed="yes",
            what="; ".join(parts),
            reached="no",
            why="The extractive provider answers from the passages and reads no prompt.",
        )
    reached: Ternary = "yes" if a.prompt_digest != b.prompt_digest else "no"
    return Row(question="prompt", changed="yes", what="; ".join(parts), reached=reached)


def _context_row(a: Receipt, b: Receipt) -> Row:
    ours, theirs = _packed(a), _packed(b)
    component = _component(a, b, "retrieval")
    if ours == theirs:
        changed: Ternary = "yes" if component[2] else "no"
        what = "; ".join(_differences(("settings", component[0], component[1]))) or f"the same {len(ours)} passages"
        why = "The settings differ, the same passages were sent." if component[2] else ""
        return Row(question="retrieved context", changed=changed, what=what, reached="no", why=why)
    new = [c for c in _packed_chunks(b) if c.digest not in {o.digest for o in _packed_chunks(a)}]
    gone = [c for c in _packed_chunks(a) if c.digest not in {o.digest for o in _packed_chunks(b)}]
    parts = [f"+ {_name(c)}" for c in new] + [f"- {_name(c)}" for c in gone]
    if not parts:
        parts = ["the same passages in another order"]
    return Row(question="retrieved context", changed="yes", what="; ".join(parts), reached="yes")


def _embedding_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "embedding")
    if not component[2]:
        return Row(question="embedding", changed="no", what="the same embedding", reached="no")
    lexical = all(
        r.retrieval is None or (r.retrieval.mode == "lexical" and r.retrieval.rerank != "vector") for r in (a, b)
    )
    return Row(
        question="embedding",
        changed="yes",
        what="; ".join(_differences(("embedding", component[0], component[1]))),
        reached="no" if lexical else "yes" if _packed(a) != _packed(b) else "no",
        why="The search was lexical and used no vectors." if lexical else "",
    )


def _documents_row(a: Receipt, b: Receipt, snapshot_a: Snapshot | None, snapshot_b: Snapshot | None) -> Row:
    first = a.retrieval.snapshot if a.retrieval else None
    second = b.retrieval.snapshot if b.retrieval else None
    if first == second:
        return Row(question="documents", changed="no", what="the same snapshot" if first else "none used", reached="no")
    if first is None or second is None:
        return Row(
            question="documents",
            changed="unknown" if _component(a, b, "retrieval")[2] else "no",
            what="one of the two requests was never searched for",
            reached="no",
        )
    parts: list[str] = []
    touched: set[str] = set()
    if snapshot_a is not None and snapshot_b is not None:
        before = {d.document: d.version for d in snapshot_a.documents}
        after = {d.document: d.version for d in snapshot_b.documents}
        new = sorted(after.keys() - before.keys())
        gone = sorted(before.keys() - after.keys())
        changed = sorted(k for k in before.keys() & after.keys() if before[k] != after[k])
        parts += [f"new: {_list(new)}"] * bool(new) + [f"changed: {_list(changed)}"] * bool(changed)
        parts += [f"gone: {_list(gone)}"] * bool(gone)
        touched = {*new, *gone, *changed}
    else:
        seen = {c.document: c.version for c in _candidates(a)}
        for chunk in _candidates(b):
            if chunk.document in seen and seen[chunk.document] != chunk.version:
                touched.add(chunk.document)
        parts.append(f"snapshot {_short(first)} -> {_short(second)}")
        parts += [f"changed: {_list(sorted(touched))}"] * bool(touched)
    sent = {c.document for c in (*_packed_chunks(a), *_packed_chunks(b)) if (c.document in touched)}
    sent &= {
        c.document
        for c in (*_packed_chunks(a), *_packed_chunks(b))
        if c.digest not in {o.digest for o in _packed_chunks(a)} & {o.digest for o in _packed_chunks(b)}
    }
    if sent:
        reached: Ternary = "yes"
        why = f"Sent to the model: {_list(sorted(sent))}."
    elif _packed(a) == _packed(b):
        reached, why = "no", "The passages that were sent are the same."
    else:
        reached, why = "yes", "Other documents moved in the ranking: their statistics are those of the snapshot."
    return Row(question="documents", changed="yes", what="; ".join(parts), reached=reached, why=why)


def _guard_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "guardrails")
    acted = [(g.side, g.action, tuple(sorted(g.findings.items()))) for g in a.guards] != [
        (g.side, g.action, tuple(sorted(g.findings.items()))) for g in b.guards
    ]
    parts = _differences(("guardrails", component[0], component[1]))
    parts += _differences(("acted", _guards(a), _guards(b)))
    if not parts:
        return Row(question="guardrail policy", changed="no", what=f"{_guards(a)} in both", reached="no")
    return Row(
        question="guardrail policy",
        changed="yes",
        what="; ".join(parts),
        reached="yes" if acted else "no",
        why="" if acted else "The guards did the same in both.",
    )


def _routing_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "routes")
    disabled = {x.model for x in a.attempts if x.outcome == "disabled"} != {
        x.model for x in b.attempts if x.outcome == "disabled"
    }
    parts = _differences(("routes", component[0], component[1]), ("route", a.route, b.route))
    if disabled:
        names = sorted({x.model for r in (a, b) for x in r.attempts if x.outcome == "disabled"})
        parts.append(f"disabled by the bindings of one release: {_list(names)}")
    if not parts:
        return Row(question="routing", changed="no", what=f"{a.route or 'none'} in both ({a.route_why})", reached="no")
    moved = a.route != b.route or (disabled and _answered_by(a) != _answered_by(b))
    return Row(
        question="routing",
        changed="yes",
        what="; ".join(parts),
        reached="yes" if moved else "no",
        why=b.route_why or "" if a.route != b.route else "" if moved else "Both took the same route.",
    )


def _validation_row(a: Receipt, b: Receipt) -> Row:
    component = _component(a, b, "output")
    first = a.validation.outcome if a.validation else "not reached"
    second = b.validation.outcome if b.validation else "not reached"
    parts = _differences(("schema", component[0], component[1]), ("outcome", first, second))
    if not parts:
        return Row(question="output validation", changed="no", what=f"{first} in both", reached="no")
    return Row(
        question="output validation",
        changed="yes",
        what="; ".join(parts),
        reached="yes" if first != second else "no",
        why="" if first != second else "Both answers came through it the same way.",
    )


def _cache_row(a: Receipt, b: Receipt) -> Row:
    changed: Ternary = "yes" if a.cache != b.cache else "no"
    what = f"{a.cache} -> {b.cache}" if changed == "yes" else f"{a.cache} in both"
    return Row(question="cache", changed=changed, what=what, reached="yes" if "hit" in (a.cache, b.cache) else "no")


def _health_row(a: Receipt, b: Receipt) -> Row:
    first, second = _failures(a), _failures(b)
    if first == second:
        return Row(question="health", changed="no", what=first or "every call succeeded in both", reached="no")
    return Row(
        question="health",
        changed="yes",
        what=f"{first or 'no failures'} -> {second or 'no failures'}",
        reached="yes" if (a.degraded is None) != (b.degraded is None) or a.route != b.route else "no",
    )


def _code_row(a: Receipt, b: Receipt) -> Row:
    changed: Ternary = "yes" if a.code_version != b.code_version else "no"
    what = f"{a.code_version} -> {b.code_version}" if changed == "yes" else f"{a.code_version} in both"
    return Row(question="code version", changed=changed, what=what, reached="unknown" if changed == "yes" else "no")


# ---------------------------------------------------------------- consequences


def _link(rows: Sequence[Row], a: Receipt, b: Receipt) -> list[Row]:
    """Name, for each changed row, the changed rows that it follows from."""
    by_name = {row.question: row for row in rows}

    def changed(name: str) -> bool:
        return by_name[name].changed == "yes"

    def of(*names: str) -> list[str]:
        return [name for name in names if changed(name)]

    links: dict[str, list[str]] = {}
    if changed("retrieved context") and by_name["retrieved context"].reached == "yes":
        found = of("documents", "question", "identity", "embedding")
        # A change of the retrieval settings is this row's own, so it stays a cause when nothing upstream moved.
        own = _component(a, b, "retrieval")[2]
        reached = [n for n in found if by_name[n].reached == "yes"]
        links["retrieved context"] = [] if own and not reached else reached
    if changed("prompt") and not _component(a, b, "prompts")[2]:
        links["prompt"] = of("retrieved context", "question")
    if changed("model") and not _component(a, b, "models")[2]:
        links["model"] = of("routing", "health")
    if changed("routing") and not _component(a, b, "routes")[2]:
        links["routing"] = of("health", "identity", "prompt")
    if changed("guardrail policy") and not _component(a, b, "guardrails")[2]:
        links["guardrail policy"] = of("question", "retrieved context", "model")
    if changed("output validation") and not _component(a, b, "output")[2]:
        links["output validation"] = of("model", "prompt", "retrieved context", "access policy")
    if changed("access policy") and not _component(a, b, "access")[2]:
        links["access policy"] = of("identity")
    linked = [
        row.model_copy(update={"consequence_of": links[row.question]}) if links.get(row.question) else row
        for row in rows
    ]
    return _stopped(linked, a, b)


# The rows of the stages that follow the input guard, and the component that each is about.
_AFTER_GUARD: tuple[str, ...] = (
    "model",
    "prompt",
    "retrieved context",
    "documents",
    "embedding",
    "routing",
    "output validation",
)
_COMPONENTS = {
    "model": "models",
    "prompt": "prompts",
    "retrieved context": "retrieval",
    "routing": "routes",
    "output validation": "output",
    "guardrail policy": "guardrails",
    "embedding": "embedding",
}


def _stopped(rows: list[Row], a: Receipt, b: Receipt) -> list[Row]:
    """Where only one of the two was stopped before the search, nothing that follows can be a cause."""
    codes = [receipt.refused.code if receipt.refused else None for receipt in (a, b)]
    if codes[0] == codes[1]:
        return rows
    if "access_denied" in codes:
        stopper, later = "access policy", ("guardrail policy", *_AFTER_GUARD)
    elif "input_blocked" in codes:
        stopper, later = "guardrail policy", _AFTER_GUARD
    else:
        return rows
    why = f"One of the two was stopped before this: {stopper}."

    def judged(row: Row) -> Row:
        if row.question not in later or row.changed != "yes":
            return row
        if _component(a, b, _COMPONENTS.get(row.question, ""))[2]:
            return row.model_copy(update={"reached": "no", "why": why})
        return row.model_copy(update={"why": "", "consequence_of": [stopper]})

    return [judged(row) for row in rows]


def _same_answer(a: Receipt, b: Receipt) -> Ternary:
    if a.answer_digest is not None and b.answer_digest is not None:
        return "yes" if a.answer_digest == b.answer_digest else "no"
    if a.refused and b.refused:
        return "yes" if a.refused.code == b.refused.code else "no"
    return "no" if (a.answer_digest is None) != (b.answer_digest is None) else "unknown"


def _summary(same: Ternary, rows: Sequence[Row], causes: Sequence[str]) -> str:
    if same == "yes":
        silent = [row.question for row in rows if row.changed == "yes"]
        if not silent:
            return "The answers are the same, and so is everything that made them."
        return f"The answers are the same, although these changed: {_list(silent)}."
    if not causes:
        unknown = [row.question for row in rows if row.reached == "unknown"]
        if unknown:
            return f"Nothing recorded explains the difference. Not knowable from receipts: {_list(unknown)}."
        return "Nothing recorded explains the difference; sampling in the model may."
    by_name = {row.question: row for row in rows}
    told = "; ".join(f"{name} ({by_name[name].what})" for name in causes)
    return f"The answer changed because of: {told}."


# ---------------------------------------------------------------- small readings of a receipt


def _side(receipt: Receipt) -> Side:
    return Side(
        receipt=receipt.id,
        time=receipt.form()["time"],
        release=receipt.release,
        route=receipt.route,
        model=_answered_by(receipt),
        refused=receipt.refused.code if receipt.refused else None,
        degraded=receipt.degraded.reason if receipt.degraded else None,
        answer_digest=receipt.answer_digest,
    )


def _component(a: Receipt, b: Receipt, name: str) -> tuple[str, str, bool]:
    first, second = a.components.get(name), b.components.get(name)
    return _short(first), _short(second), first != second


def _differences(*triples: tuple[str, str | None, str | None]) -> list[str]:
    return [f"{name} {old or 'none'} -> {new or 'none'}" for name, old, new in triples if old != new]


def _answered_by(receipt: Receipt) -> str | None:
    for attempt in reversed(receipt.attempts):
        if attempt.outcome == "ok":
            provider_model = f" ({attempt.provider_model})" if attempt.provider_model else ""
            return f"{attempt.model}/{attempt.provider}{provider_model}"
    return None


def _candidates(receipt: Receipt) -> list[UsedChunk]:
    return list(receipt.retrieval.chunks) if receipt.retrieval else []


def _packed_chunks(receipt: Receipt) -> list[UsedChunk]:
    return [chunk for chunk in _candidates(receipt) if chunk.packed]


def _packed(receipt: Receipt) -> list[str]:
    return [chunk.digest for chunk in _packed_chunks(receipt)]


def _chunks(receipt: Receipt) -> list[str]:
    return [chunk.digest for chunk in _candidates(receipt)]


def _name(chunk: UsedChunk) -> str:
    return f"{chunk.document} § {chunk.section[-1]}" if chunk.section else chunk.document


def _guards(receipt: Receipt) -> str:
    return ", ".join(f"{g.side} {g.action}" for g in receipt.guards) or "no guard"


def _failures(receipt: Receipt) -> str:
    failed = [f"{x.model} {x.outcome}" for x in receipt.attempts if x.outcome not in ("ok", "disabled")]
    if receipt.degraded is not None:
        failed.append(f"degraded: {receipt.degraded.reason}")
    return ", ".join(failed)


def _short(value: str | None) -> str:
    return value[:15] if value else "none"


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")
