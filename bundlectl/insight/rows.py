"""The rows of an explanation: one question each, answered from two receipts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

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


def rows_of(
    a: Receipt, b: Receipt, snapshot_a: Snapshot | None, snapshot_b: Snapshot | None, lost: Sequence[str] = ()
) -> list[Row]:
    """Answer each question; what follows from what is not looked at yet.

    ``lost`` are receipts that kept answers were made for, and that are gone.
    """
    return [
        _question_row(a, b),
        _identity_row(a, b),
        _access_row(a, b),
        _model_row(a, b),
        _prompt_row(a, b),
        _context_row(a, b),
        _embedding_row(a, b),
        _documents_row(a, b, snapshot_a, snapshot_b),
        _guard_row(a, b),
        _routing_row(a, b),
        _validation_row(a, b),
        _cache_row(a, b, lost),
        _health_row(a, b),
        _code_row(a, b),
    ]


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
    felt = (
        a.task != b.task
        or a.response_format != b.response_format
        or a.access != b.access
        or _chunks(a) != _chunks(b)
        or a.route != b.route
        or _effects(a) != _effects(b)
    )
    return Row(question="identity", changed="yes", what="; ".join(parts), reached="yes" if felt else "unknown")


def _access_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "access")
    decided = a.access != b.access or a.access_policies != b.access_policies
    what = "; ".join(
        _differences(
            ("decision", a.access, b.access),
            ("decided by", ", ".join(a.access_policies), ", ".join(b.access_policies)),
            ("access policies", component[0], component[1]),
        )
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
    ours, theirs = answered_by(a), answered_by(b)
    component = component_of(a, b, "models")
    parts = _differences(("answered by", ours, theirs), ("models", component[0], component[1]))
    if not parts:
        unknowable = ours is not None and not _extractive(a)
        if unknowable and a.release.bindings != b.release.bindings:
            return Row(
                question="model",
                changed="unknown",
                what=f"{ours} in both",
                reached="unknown",
                why="The bindings differ: they hold where a model is reached. See bundlectl diff of the two releases.",
            )
        return Row(
            question="model",
            changed="unknown" if unknowable else "no",
            what=f"{ours or 'none'} in both",
            reached="unknown" if unknowable else "no",
            why="Weights can change behind one model id; a receipt cannot show it." if unknowable else "",
        )
    reached: Ternary = "yes" if ours != theirs else "unknown" if ours is not None else "no"
    why = "" if ours != theirs else "The models component differs; the model that answered has the same id."
    if ours is None and theirs is None:
        why = "No model answered in either."
    return Row(question="model", changed="yes", what="; ".join(parts), reached=reached, why=why)


def _prompt_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "prompts")
    if not component[2] and a.prompt_digest == b.prompt_digest:
        return Row(question="prompt", changed="no", what="the same template and the same text", reached="no")
    parts = _differences(("template", component[0], component[1]))
    if a.prompt_digest != b.prompt_digest:
        parts.append("the rendered text differs")
    unread = [name for name, side in (("earlier", a), ("later", b)) if side.prompt_reached_model is False]
    if unread:
        return Row(
            question="prompt",
            changed="yes",
            what="; ".join(parts),
            reached="no",
            why=f"The {' and the '.join(unread)} answer came from the extractive provider, which reads no prompt.",
        )
    reached: Ternary = "yes" if a.prompt_digest != b.prompt_digest else "no"
    return Row(question="prompt", changed="yes", what="; ".join(parts), reached=reached)


def _context_row(a: Receipt, b: Receipt) -> Row:
    ours, theirs = _packed(a), _packed(b)
    component = component_of(a, b, "retrieval")
    settings = [*_differences(("settings", component[0], component[1])), *search_settings(a, b)]
    if ours == theirs:
        changed: Ternary = "yes" if settings else "no"
        what = "; ".join(settings) or f"the same {len(ours)} passages"
        why = "The settings differ (a pinned snapshot is one of them), the same passages were sent." if settings else ""
        return Row(question="retrieved context", changed=changed, what=what, reached="no", why=why)
    new = [c for c in _packed_chunks(b) if c.digest not in {o.digest for o in _packed_chunks(a)}]
    gone = [c for c in _packed_chunks(a) if c.digest not in {o.digest for o in _packed_chunks(b)}]
    parts = [f"+ {_name(c)}" for c in new] + [f"- {_name(c)}" for c in gone]
    if not parts:
        parts = ["the same passages in another order"]
    return Row(question="retrieved context", changed="yes", what="; ".join(parts + settings[1:]), reached="yes")


def search_settings(a: Receipt, b: Receipt) -> list[str]:
    """Say which settings of the search differ that receipts record; others show only in the component's digest."""
    if a.retrieval is None or b.retrieval is None:
        return []
    return _differences(
        ("mode", a.retrieval.mode, b.retrieval.mode), ("rerank", a.retrieval.rerank, b.retrieval.rerank)
    )


def _embedding_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "embedding")
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
    parts: list[str] = []
    touched: set[str] = set()
    if snapshot_a is not None and snapshot_b is not None:
        before = {d.document: d.version for d in snapshot_a.documents}
        after = {d.document: d.version for d in snapshot_b.documents}
        new = sorted(after.keys() - before.keys())
        gone = sorted(before.keys() - after.keys())
        changed = sorted(k for k in before.keys() & after.keys() if before[k] != after[k])
        parts += [f"new: {shown(new)}"] * bool(new) + [f"changed: {shown(changed)}"] * bool(changed)
        parts += [f"gone: {shown(gone)}"] * bool(gone)
        parts += ["the same documents, cut or embedded otherwise"] * (not parts)
        touched = {*new, *gone, *changed}
    else:
        seen = {c.document: c.version for c in _candidates(a)}
        for chunk in _candidates(b):
            if chunk.document in seen and seen[chunk.document] != chunk.version:
                touched.add(chunk.document)
        parts.append(f"snapshot {_short(first)} -> {_short(second)}")
        parts += [f"changed: {shown(sorted(touched))}"] * bool(touched)
    sent = {c.document for c in (*_packed_chunks(a), *_packed_chunks(b)) if (c.document in touched)}
    sent &= {
        c.document
        for c in (*_packed_chunks(a), *_packed_chunks(b))
        if c.digest not in {o.digest for o in _packed_chunks(a)} & {o.digest for o in _packed_chunks(b)}
    }
    if sent:
        reached: Ternary = "yes"
        why = f"Sent to the model: {shown(sorted(sent))}."
    elif _packed(a) == _packed(b):
        reached, why = "no", "The passages that were sent are the same."
    elif chosen_otherwise(a, b):
        reached, why = (
            "unknown",
            "Something else that chooses passages changed too; which of them did it is not recorded.",
        )
    else:
        reached, why = "yes", "Other documents moved in the ranking: their statistics are those of the snapshot."
    return Row(question="documents", changed="yes", what="; ".join(parts), reached=reached, why=why)


def chosen_otherwise(a: Receipt, b: Receipt) -> bool:
    """Say whether anything beside documents and retrieval settings that chooses passages differs."""
    return (
        (a.input_digest, a.task, a.tenant, a.role, sorted(a.scopes))
        != (b.input_digest, b.task, b.tenant, b.role, sorted(b.scopes))
        or bool(search_settings(a, b))
        or component_of(a, b, "embedding")[2]
    )


def _guard_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "guardrails")
    acted = [(g.side, g.action, tuple(sorted(g.findings.items()))) for g in a.guards] != [
        (g.side, g.action, tuple(sorted(g.findings.items()))) for g in b.guards
    ]
    parts = _differences(("guardrails", component[0], component[1]))
    parts += _differences(("acted", _guards(a), _guards(b))) or (["they found something else"] if acted else [])
    if not parts:
        return Row(question="guardrail policy", changed="no", what=f"{_guards(a)} in both", reached="no")
    return Row(
        question="guardrail policy",
        changed="yes",
        what="; ".join(parts),
        reached="yes" if _effects(a) != _effects(b) else "no",
        why=""
        if _effects(a) != _effects(b)
        else "The guards changed no text."
        if acted
        else "They did the same in both.",
    )


def _routing_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "routes")
    disabled = disabled_models(a) != disabled_models(b)
    parts = _differences(("routes", component[0], component[1]), ("route", a.route, b.route))
    if disabled:
        parts.append("a model is disabled by the bindings")
    if not parts:
        return Row(question="routing", changed="no", what=f"{a.route or 'none'} in both ({a.route_why})", reached="no")
    return Row(
        question="routing",
        changed="yes",
        what="; ".join(parts),
        reached="yes" if a.route != b.route else "no",
        why=f"{b.route_why}" if a.route != b.route else "Both took the same route.",
    )


def disabled_models(receipt: Receipt) -> set[str]:
    """Give the models that were skipped because the bindings disable them."""
    return {attempt.model for attempt in receipt.attempts if attempt.outcome == "disabled"}


def _validation_row(a: Receipt, b: Receipt) -> Row:
    component = component_of(a, b, "output")
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


def _cache_row(a: Receipt, b: Receipt, lost: Sequence[str]) -> Row:
    changed: Ternary = "yes" if a.cache != b.cache else "no"
    what = f"{a.cache} -> {b.cache}" if changed == "yes" else f"{a.cache} in both"
    hits = [one for one in (a, b) if one.cache == "hit"]
    reached: Ternary = "yes" if changed == "yes" and hits else "no"
    if hits and all(one.cached_from is not None for one in hits):
        reached = "unknown" if lost else "no"
    why = "A kept answer is explained by the request that it was made for." if hits and reached == "no" else ""
    return Row(question="cache", changed=changed, what=what, reached=reached, why=why)


def _health_row(a: Receipt, b: Receipt) -> Row:
    first, second = _failures(a), _failures(b)
    if first == second:
        return Row(question="health", changed="no", what=first or "every call succeeded in both", reached="no")
    return Row(
        question="health",
        changed="yes",
        what=f"{first or 'no failures'} -> {second or 'no failures'}",
        reached="yes" if _standing(a) != _standing(b) else "no",
    )


def _code_row(a: Receipt, b: Receipt) -> Row:
    changed: Ternary = "yes" if a.code_version != b.code_version else "no"
    what = f"{a.code_version} -> {b.code_version}" if changed == "yes" else f"{a.code_version} in both"
    return Row(question="code version", changed=changed, what=what, reached="unknown" if changed == "yes" else "no")


# ---------------------------------------------------------------- small readings of a receipt


def component_of(a: Receipt, b: Receipt, name: str) -> tuple[str, str, bool]:
    """Give a component's digest on both sides, shortened, and whether they differ."""
    first, second = a.components.get(name), b.components.get(name)
    return _short(first), _short(second), first != second


def _differences(*triples: tuple[str, str | None, str | None]) -> list[str]:
    return [f"{name} {old or 'none'} -> {new or 'none'}" for name, old, new in triples if old != new]


def answered_by(receipt: Receipt) -> str | None:
    """Give the model that answered as ``name/provider``, with the id that the provider returned; None: none did."""
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
    if receipt.degraded is not None and failed:  # a model that bindings disable degrades too, and is no failure
        failed.append(f"degraded: {receipt.degraded.reason}")
    if receipt.refused is not None and receipt.refused.code == "limited":
        failed.append("limited")
    if receipt.error is not None:
        failed.append(f"error: {receipt.error.get('error')} in {receipt.error.get('stage')}")
    return ", ".join(failed)


def _standing(receipt: Receipt) -> tuple[object, ...]:
    """Give what failures lead to: another route, a degraded answer, or none."""
    limited = receipt.refused is not None and receipt.refused.code == "limited"
    error = receipt.error.get("error") if receipt.error else None
    return receipt.route, receipt.degraded is None, limited, error


def _extractive(receipt: Receipt) -> bool:
    return any(attempt.outcome == "ok" and attempt.provider == "extractive" for attempt in receipt.attempts[-1:])


def _effects(receipt: Receipt) -> list[tuple[object, ...]]:
    """Give what guards did to texts; passing and flagging do nothing to them."""
    return [
        (guard.side, guard.action, tuple(sorted(guard.findings.items())))
        for guard in receipt.guards
        if guard.action in ("redact", "block")
    ]


def stopped_by(receipt: Receipt) -> str | None:
    """Give the question whose stage ended a request before its answer; None: it was answered."""
    if receipt.error is not None:
        return "health"
    if receipt.refused is None:
        return None
    if receipt.refused.code == "no_answer":
        return "model" if receipt.attempts else "retrieved context"
    if receipt.refused.code == "access_denied":
        return "access policy" if receipt.access == "deny" else "identity"
    return {"limited": "health", "unauthenticated": "identity"}.get(receipt.refused.code, "guardrail policy")


def _short(value: str | None) -> str:
    return value[:15] if value else "none"


def shown(names: Sequence[str]) -> str:
    """Give the first names of a list, and how many more there are."""
    first = ", ".join(names[:6])
    return first + (f" and {len(names) - 6} more" if len(names) > 6 else "")
