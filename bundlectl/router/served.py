"""What a server answers for, and who calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bundlectl.model.errors import BundlectlError, NotFound
from bundlectl.router.assemble import Compiled
from bundlectl.router.identity import Identity
from bundlectl.router.router import Router

if TYPE_CHECKING:
    from bundlectl.resolver.resolver import Status


class Targets(Protocol):
    """What knows what would be rolled back to."""

    @property
    def rollback_target(self) -> str | None:
        """Digest of the bundle that what serves names; None: it names none."""
        ...

    async def prepared_target(self) -> Compiled:
        """Give it compiled; it raises a BundlectlError where it must not, or cannot, answer."""
        ...


@dataclass(frozen=True, slots=True)
class Served:
    """One environment that a server answers for. ``current`` raises while nothing is loaded.

    Without ``targets`` there is nothing to roll back to.
    """

    app: str
    environment: str
    current: Callable[[], Compiled]
    router: Router
    status: Callable[[], Status | None] = lambda: None
    targets: Targets | None = None

    @property
    def rollback_target(self) -> str | None:
        """Digest of the bundle that a rollback would return to; None: there is none."""
        return self.targets.rollback_target if self.targets is not None else None

    async def prepared_target(self) -> Compiled:
        """Give that bundle compiled; it raises a BundlectlError where it must not, or cannot, answer."""
        if self.targets is None:
            raise NotFound(f"{self.name} has no rollback target.")
        return await self.targets.prepared_target()

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
