"""The last stages: choose a route, invoke it, guard and check what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing

from pydantic_core import from_json, to_json

from bundlectl.inference.provider import ModelReply
from bundlectl.model.canonical import digest
from bundlectl.model.contract import Citation
from bundlectl.model.receipt import ValidationRecord
from bundlectl.router.citations import cited
from bundlectl.router.contract import ContractError
from bundlectl.router.grounding import NOTHING_FOUND
from bundlectl.router.inspecting import inspect_json, joined
from bundlectl.router.invocation import Invocation
from bundlectl.router.run import Refusal, Run, guard_record
from bundlectl.router.turns import in_a_row
from bundlectl.router.windows import GuardedStream
from bundlectl.stages.guards import Action
from bundlectl.stages.output import CompiledOutput, OutputResult

_SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
_NOT_CHECKED = ValidationRecord(outcome="not_checked")


def choose_route(run: Run) -> None:
    """Take the first rule that matches and prepare the calls."""
    compiled, task = run.compiled, run.task
    name, run.route_why = compiled.select.choose(run.request, task.format, run.prompt_tokens or 0, compiled.unhealthy)
    route = run.route = compiled.routes[name]
    if route.asynchronous and run.request.latency_class != "batch":
        raise ContractError(
            [("latency_class", f"route {name} answers in batches only")],
            fix="Send latency_class: batch, or let a rule choose another route for interactive requests.",
        )
    run.invocation = Invocation(
        compiled,
        route,
        run.messages,
        run.question,
        run.passages,
        task.schema,
        run.shared.budget,
        run.shared.chance,
    )


async def invoke(run: Run) -> None:
    """Get the next reply: of the chosen route, else of its fallbacks."""
    await in_a_row()
    reply = run.reply = await _invocation(run).reply()
    if reply.refused:
        raise Refusal("no_answer", NOTHING_FOUND)


def guard_output(run: Run) -> Awaitable[None] | None:
    """Inspect the answer and its quotes; gives what to wait for, where there is anything."""
    reply = _reply(run)
    if run.task.format != "text":
        return _guard_object(run, reply)
    outcome = run.profile.output.apply(reply.text)
    _note(run, outcome.action, outcome.findings)
    _take_citations(run, reply, reply.text)
    run.output = outcome.text
    return _inspect(run) if run.profile.output_inspectors else None


async def _guard_object(run: Run, reply: ModelReply) -> None:
    """Inspect an object as it is parsed: an escape hides no address."""
    checked = run.checked = await _check(run.task.output, reply)
    if checked.outcome == "invalid":
        return
    try:
        answer_digest(checked.value)
        guarded = run.profile.output.apply_json(checked.value)
    except (ValueError, RecursionError):
        run.checked = OutputResult(None, "invalid", (": too deep, or holds a number or text that JSON cannot",))
        return
    _take_citations(run, reply, checked.value)
    _note(run, guarded.action, guarded.findings)
    run.output = guarded.value
    if run.profile.output_inspectors:
        await _inspect(run)
    if run.output != checked.value:
        again = run.task.output.check(json.dumps(run.output, ensure_ascii=False))
        if again.outcome == "invalid":
            raise Refusal("output_blocked", "The answer no longer has its required form after redaction.")


async def _inspect(run: Run) -> None:
    """Show the answer and its quotes, as the detectors left them, to what looks at text elsewhere."""
    inspectors = run.profile.output_inspectors
    quotes = [citation.quote for citation in run.citations]
    value, seen = await inspect_json(inspectors, [run.output, quotes], "output")
    run.guards["output"] = joined(run.guards["output"], seen, "output")
    if seen.action == "block":
        raise Refusal("output_blocked", f"The answer was blocked: {', '.join(sorted(seen.findings))}.")
    run.output, quotes = value
    run.citations = [
        citation.model_copy(update={"quote": quote}) for citation, quote in zip(run.citations, quotes, strict=True)
    ]


def answer_digest(output: object) -> str:
    """Give the digest of an answer's JSON, its keys sorted.

    Raises:
        ValueError: it holds an infinite number or half a surrogate pair, which have no JSON.
        RecursionError: it is nested too deep.
    """
    # Of a string alone pydantic makes the same bytes, in a third of the time.
    return digest(to_json(output) if isinstance(output, str) else _SORTED.encode(output).encode())


async def _check(output: CompiledOutput, reply: ModelReply) -> OutputResult:
    """Check a form; broken JSON in a thread, since repairing it may take half a second."""
    try:
        from_json(reply.text)
    except ValueError:
        return await asyncio.to_thread(output.check, reply.text, cut=reply.cut)
    return output.check(reply.text)


def validate_output(run: Run) -> str | None:
    """Let through what fits its form; else go back to invoking: the same model again, or the next route."""
    if run.task.format == "text":
        run.validation = _not_checked(run)
        return None
    checked, invocation, reply = run.checked, _invocation(run), _reply(run)
    if checked is None:
        raise RuntimeError(f"request {run.id}: the answer is to be validated, and was not guarded")
    if checked.outcome != "invalid":
        outcome = "asked_again" if run.asked_again else checked.outcome
        run.validation = ValidationRecord(outcome=outcome, errors=_errors(run))
        return None
    places = [_place(error, run) for error in checked.errors]
    run.validation = ValidationRecord(outcome="invalid", errors=places)
    if run.asked_again < run.task.repair and invocation.may_ask_again:
        run.asked_again += 1
        invocation.ask_again(reply.text, "; ".join(checked.errors))
    else:
        run.asked_again = 0
        invocation.fall_back(invalid=True)
    return "invoke"


async def stream_text(run: Run) -> AsyncGenerator[str, None]:
    """Invoke, guard and release in one: text comes out as soon as a window of it is known to be clean.

    Where something looks at the answer elsewhere, it comes out whole, once that is done.

    Raises:
        Refusal: the guard blocks, or the provider found no answer.
        ProviderError: the stream broke after text was released.
        NothingAnswered: no route could answer.
    """
    invocation = _invocation(run)
    gate = GuardedStream(run.profile.output, run.profile.output_max_chars)
    released: list[str] = []
    held = bool(run.profile.output_inspectors)
    async with aclosing(invocation.stream()) as deltas:
        async for delta in deltas:
            if delta is None:
                gate = GuardedStream(run.profile.output, run.profile.output_max_chars)
                released.clear()
                continue
            run.reply = delta.reply or run.reply
            if run.reply is not None and run.reply.refused:
                raise Refusal("no_answer", NOTHING_FOUND)
            try:
                text = gate.feed(delta.text, last=delta.reply is not None)
            finally:
                run.guards["output"] = guard_record("output", gate.action, gate.findings)
            if text:
                released.append(text)
                if not held:
                    invocation.committed = True
                    yield text
    if run.reply is not None:
        _take_citations(run, run.reply, run.reply.text)
    run.output = "".join(released)
    if held:
        await _inspect(run)
        yield run.output
    run.validation = _not_checked(run)


def _invocation(run: Run) -> Invocation:
    """Give the prepared calls; a stage out of order is a defect, and answers nothing."""
    if run.invocation is None:
        raise RuntimeError(f"request {run.id}: no route was chosen yet")
    return run.invocation


def _reply(run: Run) -> ModelReply:
    if run.reply is None:
        raise RuntimeError(f"request {run.id}: no model has answered yet")
    return run.reply


def _note(run: Run, action: Action, findings: dict[str, int]) -> None:
    run.guards["output"] = guard_record("output", action, findings)
    if action == "block":
        raise Refusal("output_blocked", f"The answer was blocked: {', '.join(sorted(findings))}.")


def _take_citations(run: Run, reply: ModelReply, output: object) -> None:
    """Map citations to packed passages; quotes are matched as written, and released as the guard lets them."""
    given = reply.citations
    if given is None and not run.passages and isinstance(output, str) and "[" not in output:
        return
    found, run.unknown_citations = cited(output, given, run.passages)
    citations: list[Citation] = []
    for citation in found:
        if citation.quote is not None:
            outcome = run.profile.output.apply(citation.quote)
            if outcome.action == "block":
                _note(run, outcome.action, outcome.findings)
            citation = citation.model_copy(update={"quote": outcome.text})
        citations.append(citation)
    run.citations = citations


def _not_checked(run: Run) -> ValidationRecord:
    return ValidationRecord(outcome="not_checked", errors=_errors(run)) if run.unknown_citations else _NOT_CHECKED


def _errors(run: Run) -> list[str]:
    return [f"citation {number} names no passage" for number in run.unknown_citations[:20]]


def _place(error: str, run: Run) -> str:
    """Reduce a validation error to its place: messages quote the answer, and so may keys the schema does not know."""
    known = json.dumps(run.task.schema, ensure_ascii=False)
    parts = error.partition(":")[0].split("/")[1:]
    return "/" + "/".join(part if part.isdigit() or json.dumps(part) in known else "*" for part in parts)
