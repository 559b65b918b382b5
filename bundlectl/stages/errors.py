"""What the stages raise when a bundle's own parts are wrong: source errors with the place inside the part.

Stages know no paths of the source tree beyond what the component holds; bundling maps a problem's ``file``
(a policy's path, or the logical name of a prompt, guard or output) to the file and line that people edit.
"""

from __future__ import annotations

from dataclasses import dataclass

from bundlectl.model.errors import Problem, SourceError


class PolicyError(SourceError):
    """A Cedar policy, schema or access case is wrong. Each problem names the policy file and its line."""

    code = "policy"


class GuardError(SourceError):
    """A detector cannot be compiled. ``detectors`` gives each problem's position in the guard's list, from 0.

    It is empty when no single detector is to blame.
    """

    code = "guard"

    def __init__(self, problems: list[Problem], detectors: list[int]) -> None:
        super().__init__(problems)
        self.detectors = detectors


class SchemaError(SourceError):
    """An output's JSON Schema is no schema that may be used.

    ``pointers`` gives for each problem the JSON Pointer (RFC 6901) of the place in the schema.
    """

    code = "schema"

    def __init__(self, problems: list[Problem], pointers: list[str]) -> None:
        super().__init__(problems)
        self.pointers = pointers


@dataclass(frozen=True, slots=True)
class PromptFinding:
    """One fault of a template. ``message`` counts from 0, ``line`` from 1 inside that message's content."""

    message: int
    line: int
    text: str
    right: str = ""


class PromptError(SourceError):
    """A template does not compile, reads what it may not, or fails while it renders.

    ``findings`` holds the places; a problem's ``file`` is ``prompt NAME, message N`` with N counted from 1, and
    its ``line`` is the line inside that message's content.
    """

    code = "prompt"

    def __init__(self, prompt: str, findings: list[PromptFinding]) -> None:
        super().__init__(
            [
                Problem(f"prompt {prompt}, message {found.message + 1}", found.line, found.text, found.right)
                for found in findings
            ]
        )
        self.prompt = prompt
        self.findings = findings
