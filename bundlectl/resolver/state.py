"""What was believed last; every next head is measured against it."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

from bundlectl.model.canonical import canonical, parse_document
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.types import Digest, Strict, Time, wrong_fields


class TrustedState(Strict):
    """What was believed last. It only ever grows, also over a restart: see ``lastgood.py``."""

    registry: Digest
    keyring: Annotated[int, Field(ge=1)]
    keyring_digest: Digest
    policy: Annotated[int, Field(ge=1)]
    epoch: Annotated[int, Field(ge=1)]
    serial: Annotated[int, Field(ge=1)]
    base: Annotated[int, Field(ge=1)]
    """The serial of the promoter's release that was live: ``serial`` itself unless that is a renewal."""
    head: Digest
    time: Time

    def to_bytes(self) -> bytes:
        """Give canonical JSON."""
        return canonical(self.form())

    @classmethod
    def from_bytes(cls, data: bytes) -> TrustedState:
        """Read it back.

        Raises:
            VerificationFailed: it has another form.
        """
        try:
            return cls.model_validate(parse_document(data, what="the trusted state"))
        except ValidationError as error:
            raise VerificationFailed("The trusted state does not have its form.", why=wrong_fields(error)) from error
