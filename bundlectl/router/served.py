"""What a server answers for, and who calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bundlectl.model.errors import BundlectlError
from bundlectl.router.assemble import Compiled
from bundlectl.router.identity import Identity
from bundlectl.router.router import Router

if TYPE_CHECKING:
    from bundlectl.resolver.resolver import Status


@dataclass(frozen=True, slots=True)
class Served:
    """One environment that a server answers for. ``current`` raises while nothing is loaded."""

    app: str
    environment: str
    current: Callable[[], Compiled]
    router: Router
    status: Callable[[], Status | None] = lambda: None

    @property
    def name(self) -> str:
        """Give it as ``x-app`` names it: ``app:environment``."""
        return f"{self.app}:{self.environment}"

    def loaded(self) -> Compiled | None:
        """Give what serves; ``None`` while nothing may."""
        try:
            return self.current()
        except BundlectlError:
            return None


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls, by a release; that very release answers: the next one may know other callers."""

    served: Served
    compiled: Compiled
    identity: Identity
