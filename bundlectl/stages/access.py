"""May this caller ask this task? Cedar decides, from policies that are parsed and validated once per bundle.

The vocabulary that every bundle's schema declares (``VOCABULARY`` is it, in Cedar's schema syntax):

* principal ``Caller::"<tenant>/<role>"`` with ``tenant`` and ``role``: what the identity was allowed to claim;
* action ``Action::"ask"``;
* resource ``Task::"<task>"`` with ``task``, ``tenant`` (whose data the request is about), ``scopes`` (every scope
  the request wants) and ``profile`` (the policy profile that it asks to run under).

Allow counts only when Cedar says Allow, its diagnostics hold no error, and the caller's tenant is the
resource's tenant, which is checked here as well: Cedar alone skips a policy that errors, so a ``forbid`` that
reads a missing attribute would fail open. See DESIGN section 8.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cedarpy

from bundlectl.model.components import Access, AccessCase, FileRef
from bundlectl.model.errors import Problem
from bundlectl.stages.cedar_text import Statement, line_of, split_policies
from bundlectl.stages.errors import PolicyError

CACHE_SIZE = 4096
"""How many decisions one bundle keeps."""

VOCABULARY = """\
entity Caller {
  tenant: String,
  role: String,
};
entity Task {
  task: String,
  tenant: String,
  scopes: Set<String>,
  profile: String,
};
action "ask" appliesTo {
  principal: [Caller],
  resource: [Task],
};
"""
"""What a bundle's schema must declare at least, word for word usable as a schema."""


class AccessQuestion(NamedTuple):
    """The entire request that is decided on; the cache's key, so every field counts.

    ``resource_tenant`` is whose data is asked for: the request's own tenant unless the caller knows better.
    """

    task: str
    tenant: str
    role: str
    scopes: frozenset[str]
    profile: str
    resource_tenant: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. ``policies`` are the policies that decided: ``@id`` annotation, else ``file:line``.

    ``errors`` is why it is a denial although no policy said so: Cedar's diagnostics, or the tenant check.
    """

    allow: bool
    policies: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FailedCase:
    """An access case that the policies decide otherwise than it expects."""

    case: AccessCase
    decision: Decision
    why: str


class AccessPolicy:
    """A bundle's access rules, ready to decide. Safe to share between threads."""

    def __init__(
        self, access: Access, policies: cedarpy.PolicySet, schema: cedarpy.Schema, names: tuple[str, ...]
    ) -> None:
        self._access = access
        self._policies = policies
        self._schema = schema
        self._names = names
        self.decide = lru_cache(maxsize=CACHE_SIZE)(self.decide_uncached)
        """Decide a question; the last ``CACHE_SIZE`` different questions are remembered whole."""

    @classmethod
    def compile(cls, access: Access, files: Mapping[str, bytes]) -> AccessPolicy:
        """Parse the policies and validate them strictly against the schema.

        Args:
            access: the component.
            files: contents by digest; more than the component names is fine.

        Raises:
            PolicyError: a file is missing or no UTF-8, a policy or the schema does not parse or does not validate, a
                policy is a template, there is no policy at all, or the schema lacks part of ``VOCABULARY``.
                All problems of all files together, each with its line.
        """
        schema = _schema(access.schema_, _text(access.schema_, files))
        problems: list[Problem] = []
        statements: list[tuple[str, Statement]] = []
        for ref in access.policies:
            try:
                found = _policies(ref, _text(ref, files), schema)
            except PolicyError as error:
                problems += error.problems
            else:
                statements += [(ref.path, statement) for statement in found]
        if problems:
            raise PolicyError(problems)
        if not statements:
            raise PolicyError(
                [Problem(access.policies[0].path, 0, "no policy at all", "without a permit everything is denied")]
            )
        whole = cedarpy.PolicySet.from_str("\n".join(statement.text for _, statement in statements))
        names = tuple(f"{path}:{statement.line}" for path, statement in statements)
        return cls(access, whole, schema, names)

    def decide_uncached(self, question: AccessQuestion) -> Decision:
        """Decide a question afresh: what :attr:`decide` remembers."""
        if question.tenant != question.resource_tenant:
            return Decision(False, (), ("the caller's tenant is not the tenant whose data is asked for",))
        request, entities = _cedar(question)
        result = cedarpy.is_authorized(request, self._policies, entities, self._schema)
        named = result.diagnostics.id_annotations_by_reason
        policies = tuple(sorted(named.get(reason) or self._name(reason) for reason in result.diagnostics.reasons))
        errors = tuple(self._readable(error) for error in result.diagnostics.errors)
        return Decision(result.allowed and not errors, policies, errors)

    def run_cases(self) -> list[FailedCase]:
        """Decide every case of the component; give those that come out otherwise than expected, in order."""
        failed = []
        for case in self._access.cases:
            decision = self.decide_uncached(case_question(case))
            if decision.allow != (case.expect == "allow"):
                failed.append(FailedCase(case, decision, _why(case, decision)))
        return failed

    def _name(self, policy_id: str) -> str:
        """Give ``file:line`` of Cedar's positional id ``policyN``."""
        number = policy_id.removeprefix("policy")
        return self._names[int(number)] if number.isdigit() and int(number) < len(self._names) else policy_id

    def _readable(self, error: str) -> str:
        """Replace the positional ids in one of Cedar's messages; ids are quoted with backticks there."""
        for index, name in enumerate(self._names):
            error = error.replace(f"`policy{index}`", name)
        return error


def case_question(case: AccessCase) -> AccessQuestion:
    """Give the question of a case; its resource belongs to its own tenant unless it says otherwise."""
    return AccessQuestion(
        case.task,
        case.tenant,
        case.role,
        frozenset(case.scopes),
        case.profile,
        case.tenant if case.resource_tenant is None else case.resource_tenant,
    )


def _why(case: AccessCase, decision: Decision) -> str:
    got = "allowed" if decision.allow else "denied"
    by = f" by {', '.join(decision.policies)}" if decision.policies else " because no policy permits it"
    because = f" ({'; '.join(decision.errors)})" if decision.errors else ("" if decision.allow else by)
    return f"access case {case.name!r} expects {case.expect}, but it is {got}{by if decision.allow else because}"


def _cedar(question: AccessQuestion) -> tuple[dict[str, Any], str]:
    """Give the Cedar request and the entities as JSON. Ids go as dicts, never as formatted Cedar text."""
    caller = {"type": "Caller", "id": f"{question.tenant}/{question.role}"}
    task = {"type": "Task", "id": question.task}
    request = {"principal": caller, "action": {"type": "Action", "id": "ask"}, "resource": task}
    entities = [
        {"uid": caller, "attrs": {"tenant": question.tenant, "role": question.role}, "parents": []},
        {
            "uid": task,
            "attrs": {
                "task": question.task,
                "tenant": question.resource_tenant,
                "scopes": sorted(question.scopes),
                "profile": question.profile,
            },
            "parents": [],
        },
    ]
    return request, json.dumps(entities)


def _text(ref: FileRef, files: Mapping[str, bytes]) -> str:
    data = files.get(ref.digest)
    if data is None:
        raise PolicyError([Problem(ref.path, 0, f"the bundle does not hold this file ({ref.digest})")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError([Problem(ref.path, line, "not UTF-8 text")]) from None


def _schema(ref: FileRef, text: str) -> cedarpy.Schema:
    try:
        schema = cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise PolicyError([Problem(ref.path, line_of(str(error), text), str(error))]) from None
    probe = AccessQuestion("task", "tenant", "role", frozenset({"scope"}), "profile", "tenant")
    request, entities = _cedar(probe)
    result = cedarpy.is_authorized(request, "", entities, schema)
    if result.diagnostics.errors:
        # Cedar quotes the entities it was given before it says what is wrong with them.
        reason = result.diagnostics.errors[0].splitlines()[-1].rpartition("]: ")[2]
        raise PolicyError(
            [
                Problem(
                    ref.path,
                    0,
                    f"the schema does not fit what the router asks: {reason}",
                    "declare Caller {tenant, role}, Task {task, tenant, scopes: Set<String>, profile} and action ask",
                )
            ]
        )
    return schema


def _policies(ref: FileRef, text: str, schema: cedarpy.Schema) -> list[Statement]:
    """Give a file's statements, each parsed and validated alone, because Cedar's messages carry no line."""
    statements = split_policies(text)
    problems: list[Problem] = []
    for statement in statements:
        try:
            parsed = cedarpy.PolicySet.from_str(statement.text)
        except ValueError as error:
            problems.append(Problem(ref.path, statement.line_of(str(error)), f"does not parse: {error}"))
            continue
        if parsed.templates():
            message = "a policy template (?principal, ?resource) decides nothing here"
            problems.append(Problem(ref.path, statement.line, message, "write the principal or resource out"))
            continue
        result = cedarpy.validate_policies(statement.text, schema)
        for finding in result.errors:
            message = finding.error.removeprefix("for policy `policy0`, ")
            problems.append(Problem(ref.path, statement.line_of(message), message))
    if problems:
        raise PolicyError(problems)
    return statements
