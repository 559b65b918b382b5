"""References: how a bundle, an environment or a release is named on the command line.

``support@sha256:3f2a…`` (8 hex digits or more), ``support:prod``, ``support:prod@41``, or a source path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bundlectl.model.errors import UsageError

_APP = r"(?P<app>[a-z0-9][a-z0-9-]{0,39})"
_BUNDLE = re.compile(_APP + r"@sha256:(?P<hex>[0-9a-f]*)")
_ENVIRONMENT = re.compile(_APP + r":(?P<environment>[a-z0-9][a-z0-9-]{0,39})(?:@(?P<serial>[0-9]{1,16}))?")


@dataclass(frozen=True, slots=True)
class BundleReference:
    """A stored bundle by app and the first digits of its digest."""

    app: str
    hex_prefix: str


@dataclass(frozen=True, slots=True)
class EnvironmentReference:
    """An environment's live release, or the release that had ``serial``."""

    app: str
    environment: str
    serial: int | None = None

    def __str__(self) -> str:
        return f"{self.app}:{self.environment}" + (f"@{self.serial}" if self.serial is not None else "")


@dataclass(frozen=True, slots=True)
class SourceReference:
    """A source folder on disk."""

    path: Path


Reference = BundleReference | EnvironmentReference | SourceReference


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        UsageError: it is none of the three forms and no such path exists.
    """
    if found := _BUNDLE.fullmatch(text):
        if len(found["hex"]) < 8 or len(found["hex"]) > 64:
            raise UsageError(
                f"{text!r} names a bundle by {len(found['hex'])} hex digits; between 8 and 64 are needed.",
                fix="`bundlectl history APP:ENV` and `bundlectl build` print whole digests.",
            )
        return BundleReference(found["app"], found["hex"])
    if found := _ENVIRONMENT.fullmatch(text):
        serial = found["serial"]
        return EnvironmentReference(found["app"], found["environment"], int(serial) if serial else None)
    path = Path(text)
    if path.exists():
        return SourceReference(path)
    raise UsageError(
        f"{text!r} is neither a reference nor a path that exists.",
        fix="A reference is support@sha256:3f2a1b9c, support:prod, support:prod@41, or the folder of a bundle.yaml.",
    )


def parse_environment(text: str) -> EnvironmentReference:
    """Read ``APP:ENV`` or ``APP:ENV@SERIAL``.

    Raises:
        UsageError: it has another form.
    """
    found = _ENVIRONMENT.fullmatch(text)
    if found is None:
        raise UsageError(f"{text!r} does not name an environment.", fix="Write APP:ENV, e.g. support:prod.")
    serial = found["serial"]
    return EnvironmentReference(found["app"], found["environment"], int(serial) if serial else None)
