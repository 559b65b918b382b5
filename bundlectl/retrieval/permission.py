"""Who may see a document: the filter that the server makes from identity and scope, never the client."""

from __future__ import annotations

from dataclasses import dataclass

from bundlectl.model.documents import EVERYONE, Acl


@dataclass(frozen=True, slots=True)
class Filter:
    """What one request may draw on: documents of its tenant (or everyone's), in its scopes, open to its role.

    Raises:
        ValueError: tenant or role is empty or ``*``: that stands for everyone on a document and for nobody here.
    """

    tenant: str
    scopes: frozenset[str]
    role: str

    def __post_init__(self) -> None:
        for name, value in (("tenant", self.tenant), ("role", self.role)):
            if value in ("", EVERYONE):
                raise ValueError(f"a filter's {name} must name one {name}, and is {value!r}")
        object.__setattr__(self, "scopes", frozenset(self.scopes))

    def permits(self, acl: Acl) -> bool:
        """Say whether a document with these labels may be seen."""
        return (
            acl.tenant in (self.tenant, EVERYONE)
            and acl.scope in self.scopes
            and (EVERYONE in acl.roles or self.role in acl.roles)
        )
