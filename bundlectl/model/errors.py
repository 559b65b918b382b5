"""The one exception base, and the exit code that each kind of failure carries.

Every error says what happened, why, and what to do next. The command line prints those three lines and
exits with the class's code; a traceback appears only with ``--debug``. Exit 1 is kept for a defect in
bundlectl itself: an exception that is not one of these.
"""

from __future__ import annotations

from typing import Any, ClassVar


class BundlectlError(Exception):
    """Base of every failure that bundlectl foresees.

    Args:
        what: one sentence: what happened.
        why: the cause, when it is known and not already said.
        fix: what the reader does next.
        details: machine-readable facts for ``--output json``.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "error"

    def __init__(self, what: str, *, why: str = "", fix: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.details: dict[str, Any] = details or {}

    def __str__(self) -> str:
        return "\n".join(part for part in (self.what, self.why, self.fix) if part)

    def to_dict(self) -> dict[str, Any]:
        """Give the error as the JSON object that ``--output json`` prints on stderr."""
        return {
            "error": self.code,
            "message": self.what,
            "why": self.why,
            "fix": self.fix,
            "exit_code": self.exit_code,
            **({"details": self.details} if self.details else {}),
        }


class UsageError(BundlectlError):
    """The command was called wrongly, or something it needs is not there."""

    exit_code = 2
    code = "usage"


class SourceError(BundlectlError):
    """A source file does not validate. ``problems`` holds each finding with its place."""

    exit_code = 2
    code = "source"

    def __init__(self, problems: list[Problem], *, fix: str = "") -> None:
        lines = "\n".join(str(problem) for problem in problems)
        super().__init__(lines, fix=fix, details={"problems": [problem.to_dict() for problem in problems]})
        self.problems = problems


class MissingExtra(UsageError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra '{extra}', which is not installed.",
            fix=f"Install it: pip install 'bundlectl[{extra}]'",
            details={"extra": extra},
        )


class GateNotPassed(BundlectlError):
    """A gate's verdict is fail, inconclusive or error."""

    exit_code = 3
    code = "gate_not_passed"


class VerificationFailed(BundlectlError):
    """Bytes, signatures, thresholds or the order of releases are not what they must be."""

    exit_code = 4
    code = "verification_failed"


class NotFound(BundlectlError):
    """A named bundle, release, receipt or file does not exist."""

    exit_code = 2
    code = "not_found"


class Conflict(BundlectlError):
    """Someone else committed first; nothing of ours was stored as live."""

    exit_code = 5
    code = "conflict"


class BackendUnavailable(BundlectlError):
    """Storage, a key service or a model cannot be reached, is full or refuses; or the outcome is unknown."""

    exit_code = 6
    code = "backend_unavailable"


class DifferenceFound(BundlectlError):
    """``diff --exit-code`` or ``drift`` found a difference."""

    exit_code = 7
    code = "difference_found"


class Problem:
    """One finding in a source file: where, what is wrong, what would be right.

    ``line`` and ``column`` count from 1; 0 means that the whole file is meant.
    """

    __slots__ = ("column", "file", "line", "message", "right")

    def __init__(self, file: str, line: int, message: str, right: str = "", *, column: int = 0) -> None:
        self.file = file
        self.line = line
        self.column = column
        self.message = message
        self.right = right

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.message}" + (f" ({self.right})" if self.right else "")

    def to_dict(self) -> dict[str, Any]:
        """Give the finding as a JSON object."""
        return {
            "file": self.file,
            "line": self.line,
            "column": self.column,
            "message": self.message,
            "right": self.right,
        }
