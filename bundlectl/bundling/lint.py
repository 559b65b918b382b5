"""Lint: what is legal and unwise. Findings stop no build; a gate may forbid rules by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Components
from bundlectl.model.components import When

LINT_RULES: dict[str, str] = {
    "floating-model": "A model's id is an alias that its provider can move: latest, or no date or version.",
    "floating-snapshot": "A retrieval follows the newest documents instead of one snapshot's digest.",
    "floating-guardrail": "A managed guardrail is bound by its DRAFT, which changes without a release.",
    "no-fallback": "A route fails when its model fails: it has no fallback and is not the restricted one.",
    "no-access-allow-case": "No access case shows that anyone may ask a task.",
    "no-access-deny-case": "No access case shows that anyone is refused: nothing tests what the policies protect.",
    "async-without-batch": "A rule without latency_class batch, or a fallback, leads to a route that answers later.",
    "empty-profile": "A profile looks for nothing, neither in what comes in nor in what goes out.",
    "loose-schema": "An output's schema lets through keys that it does not name, or requires none.",
    "max-tokens-not-set": "A model's answer is cut at its provider's default length.",
    "temperature-not-set": "A sampled model runs at its provider's default temperature.",
    "no-suite": "The bundle names no suite to be measured by.",
    "retrieval-without-scopes": "A task retrieves and may see no scope, so it never finds anything.",
    "scopes-without-retrieval": "A task lists scopes and retrieves nothing.",
    "unused-model": "A model that no route uses.",
    "unused-route": "A route that no rule uses and nothing falls back to.",
    "unused-prompt": "A prompt that no task uses.",
    "unused-profile": "A profile that no task lists.",
    "unused-retrieval": "A retrieval that no task uses.",
}
"""Every rule by its name, and what a finding of it means."""

_SAMPLED = ("openai", "bedrock", "sagemaker")
_FLOATS = re.compile(r"(^|[-:@/._])(latest|stable|default|main|current)$", re.IGNORECASE)
_ALIAS = re.compile(r"(^|/)(gpt-|chatgpt-|o[1-9](-|$)|claude-|gemini-)", re.IGNORECASE)
_DATED = re.compile(r"(\d{4}-\d\d-\d\d|\d{8}|-\d{4}$|-\d{3}$|:\d+$|@\d+)")


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding: the rule's name, the dotted place in bundle.yaml (or under ``bindings``), and why it is one."""

    rule: str
    place: str
    message: str

    def to_dict(self) -> dict[str, str]:
        """Give the finding as a JSON object."""
        return {"rule": self.rule, "place": self.place, "message": self.message}


def lint(components: Components, bindings: Bindings | None = None) -> list[Finding]:
    """Find what is legal and unwise in a bundle, and in one environment's bindings where they are given.

    Returns:
        findings in the order of :data:`LINT_RULES`, then of places.
    """
    order = list(LINT_RULES)
    found = [finding for rule in _RULES for finding in rule(components)]
    if bindings is not None:
        found += _guardrails(bindings)
    return sorted(found, key=lambda finding: (order.index(finding.rule), finding.place))


def _models(components: Components) -> Iterator[Finding]:
    for name, model in components.models.items():
        if model.model is not None and (reason := _floating(model.model)):
            yield Finding("floating-model", f"models.{name}.model", f"{model.model} {reason}")
        if model.provider in _SAMPLED:
            parameters = model.parameters
            if "temperature" not in parameters:
                message = f"model {name} runs at its provider's default temperature; set parameters.temperature"
                yield Finding("temperature-not-set", f"models.{name}", message)
            if not {"max_tokens", "max_completion_tokens"} & set(parameters):
                message = f"model {name} is cut at its provider's default length; set parameters.max_tokens"
                yield Finding("max-tokens-not-set", f"models.{name}", message)


def _floating(model: str) -> str:
    if _FLOATS.search(model):
        return "names whatever is newest; write the full version"
    if _ALIAS.search(model) and not _DATED.search(model):
        return "is an alias that its provider moves; write the id with its date or version"
    return ""


def _retrievals(components: Components) -> Iterator[Finding]:
    for name, use in components.retrieval.items():
        if use.snapshot == "following":
            message = f"retrieval {name} follows the newest {use.index}; pin a snapshot's digest"
            yield Finding("floating-snapshot", f"retrieval.{name}.snapshot", message)


def _guardrails(bindings: Bindings) -> Iterator[Finding]:
    for name, guard in sorted(bindings.guards.items()):
        if str(guard.get("version", "")).upper() == "DRAFT":
            message = f"guard {name} is bound by its DRAFT; publish a version and bind that"
            yield Finding("floating-guardrail", f"bindings.guards.{name}.version", message)


def _routes(components: Components) -> Iterator[Finding]:
    routes = components.routes.routes
    for name, route in routes.items():
        model = components.models.get(route.model)
        quotes = model is not None and model.provider == "extractive"
        if not route.fallback and route.mode == "sync" and not quotes and name != "restricted":
            message = f"when model {route.model} fails, requests on route {name} fail"
            yield Finding("no-fallback", f"routes.{name}", message)
        for position, target in enumerate(route.fallback):
            if target in routes and routes[target].mode == "async" and route.mode == "sync":
                message = f"route {name} falls back to {target}, which does not answer at once"
                yield Finding("async-without-batch", f"routes.{name}.fallback.{position}", message)
    for position, rule in enumerate(components.routes.select):
        batch = (rule.when or When()).latency_class == "batch"
        if rule.use in routes and routes[rule.use].mode == "async" and not batch:
            message = f"rule {position + 1} sends interactive requests to {rule.use}, which does not answer at once"
            yield Finding("async-without-batch", f"routes.select.{position}", message)


def _access(components: Components) -> Iterator[Finding]:
    cases = components.access.cases
    for name in components.application.tasks:
        if not any(case.expect == "allow" and case.task == name for case in cases):
            message = f"no access case shows who may ask {name}"
            yield Finding("no-access-allow-case", f"tasks.{name}", message)
    if not any(case.expect == "deny" for case in cases):
        yield Finding("no-access-deny-case", "access", "no access case expects deny, so nothing tests the walls")


def _tasks(components: Components) -> Iterator[Finding]:
    for name, task in components.application.tasks.items():
        if task.retrieval is not None and not task.scopes:
            message = f"task {name} retrieves and may see no scope: it finds nothing"
            yield Finding("retrieval-without-scopes", f"tasks.{name}", message)
        if task.retrieval is None and task.scopes:
            message = f"task {name} lists scopes and retrieves nothing"
            yield Finding("scopes-without-retrieval", f"tasks.{name}.scopes", message)
        output = components.output.get(name)
        schema = output.schema_ if output is not None else None
        if schema is not None and (loose := _loose(schema)):
            yield Finding("loose-schema", f"tasks.{name}.output.schema", f"the schema of {name} {loose}")
    if not components.evaluation.suites:
        message = "the bundle names no suite to be measured by; a gate may still require one"
        yield Finding("no-suite", "evaluation", message)


def _loose(schema: dict[str, object]) -> str:
    if "$ref" in schema or any(key in schema for key in ("allOf", "anyOf", "oneOf")):
        return ""
    if schema.get("additionalProperties") is not False and schema.get("unevaluatedProperties") is not False:
        return "lets through keys that it does not name; set additionalProperties: false"
    return "" if schema.get("required") else "requires no key, so {} is an answer; set required"


def _profiles(components: Components) -> Iterator[Finding]:
    for name, profile in components.guardrails.items():
        if not profile.input.detectors and not profile.output.detectors:
            yield Finding("empty-profile", f"guardrails.{name}", f"profile {name} looks for nothing")


def _unused(components: Components) -> Iterator[Finding]:
    tasks = components.application.tasks.values()
    routes = components.routes.routes
    # A route is reached from a rule, directly or through fallbacks.
    reached: set[str] = set()
    waiting = [rule.use for rule in components.routes.select]
    while waiting:
        name = waiting.pop()
        if name in routes and name not in reached:
            reached.add(name)
            waiting += routes[name].fallback
    listed = {profile for task in tasks for profile in task.profiles}
    for rule, section, names, used in (
        ("unused-model", "models", components.models, {route.model for route in routes.values()}),
        ("unused-route", "routes", routes, reached),
        ("unused-prompt", "prompts", components.prompts, {task.prompt for task in tasks}),
        ("unused-profile", "guardrails", components.guardrails, listed),
        ("unused-retrieval", "retrieval", components.retrieval, {task.retrieval for task in tasks}),
    ):
        for name in names:
            if name not in used:
                yield Finding(rule, f"{section}.{name}", LINT_RULES[rule])


_RULES: tuple[Callable[[Components], Iterator[Finding]], ...] = (
    _models,
    _retrievals,
    _routes,
    _access,
    _tasks,
    _profiles,
    _unused,
)
