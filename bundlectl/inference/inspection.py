"""What looks at text elsewhere than in this process: managed guardrails, and detectors in a process of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Side = Literal["input", "output"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What an inspector found. ``texts``: those that were given, redacted where it redacts; empty when it blocks.

    ``findings`` counts by name and never quotes. ``units`` is what the service bills for, by its own names.
    """

    texts: tuple[str, ...]
    action: Literal["pass", "flag", "redact", "block"]
    findings: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)


class Inspector(Protocol):
    """Looks at texts, and says what may go on."""

    @property
    def name(self) -> str:
        """What findings are named after, e.g. ``bedrock``."""
        ...

    async def ready(self) -> None:
        """Make sure that it can be asked, before any request depends on it.

        Raises:
            BundlectlError: it cannot.
        """
        ...

    async def inspect(self, texts: Sequence[str], side: Side) -> Inspection:
        """Look at texts that belong together, within a deadline of its own.

        Raises:
            ProviderError: it could not, or not in time; the caller blocks.
        """
        ...
