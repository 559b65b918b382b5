"""Prove the parts that run: prompts, guards, output schemas and access rules are compiled, rendered and decided here.

The stages say what is wrong in terms of their part; here it gets the file and the line that people edit.
"""

from __future__ import annotations

from collections.abc import Mapping

from bundlectl.bundling.files import Folder
from bundlectl.bundling.jsonfile import json_places, pointer_path
from bundlectl.bundling.yaml import Document
from bundlectl.model.components import Access, Output, Profile, Prompt
from bundlectl.model.errors import Problem
from bundlectl.stages.access import AccessPolicy, case_question
from bundlectl.stages.errors import GuardError, PolicyError, PromptError, SchemaError
from bundlectl.stages.guards import CompiledGuard
from bundlectl.stages.output import CompiledOutput
from bundlectl.stages.prompt import CompiledPrompt


def check_prompt(name: str, prompt: Prompt, document: Document) -> list[Problem]:
    """Compile a prompt's templates, and render them once with sample values, so that one that never ends is found."""
    try:
        CompiledPrompt.compile(name, prompt)
    except PromptError as error:
        return [_at_template(document, each.message, each.line, each.text, each.right) for each in error.findings]
    return []


def _at_template(document: Document, message: int, line: int, text: str, right: str) -> Problem:
    place = document.place(("messages", message, "content"))
    return Problem(document.file, place.text_line + line - 1, text, right, column=0)


def check_guards(guardrails: Mapping[str, Profile], document: Document) -> list[Problem]:
    """Compile both sides of every profile."""
    problems: list[Problem] = []
    for name, profile in sorted(guardrails.items()):
        for side, guard in (("input", profile.input), ("output", profile.output)):
            try:
                CompiledGuard.compile(guard)
            except GuardError as error:
                for position, problem in zip(error.detectors, error.problems, strict=True):
                    at = ("guardrails", name, side, "detectors", position, "pattern")
                    problems.append(document.problem(at, problem.message, problem.right))
    return problems


def check_output(output: Output, file: str, data: bytes) -> list[Problem]:
    """Compile an output's schema."""
    try:
        CompiledOutput.compile(output)
    except SchemaError as error:
        places = json_places(data, file)
        return [
            places.problem(pointer_path(pointer, output.schema_), problem.message, problem.right)
            for pointer, problem in zip(error.pointers, error.problems, strict=True)
        ]
    return []


def check_access(
    access: Access, files: Mapping[str, bytes], documents: Mapping[str, Document], folder: Folder, cases: str
) -> list[Problem]:
    """Validate the policies against their schema and let them decide every case.

    A case that comes out as expected, but while a policy errors, is a problem too: that policy decides nothing.
    """
    by_digest = {ref.digest: files[ref.path] for ref in [*access.policies, access.schema_]}
    try:
        policy = AccessPolicy.compile(access, by_digest)
    except PolicyError as error:
        return [Problem(folder.display(p.file), p.line, p.message, p.right, column=p.column) for p in error.problems]
    document = documents[cases]
    positions = {id(case): position for position, case in enumerate(access.cases)}
    failed = {positions[id(each.case)]: each.why for each in policy.run_cases()}
    problems: list[Problem] = []
    for position, case in enumerate(access.cases):
        question = case_question(case)
        decision = policy.decide(question)
        if position in failed:
            right = "change the policy, or what the case expects"
            problems.append(document.problem(("cases", position), failed[position], right))
        elif decision.errors and question.tenant == question.resource_tenant:
            message = f"a policy errors in access case {case.name!r}: {'; '.join(decision.errors)}"
            right = "a policy that errors is skipped; guard the expression so that it cannot error"
            problems.append(document.problem(("cases", position), message, right))
    return problems
