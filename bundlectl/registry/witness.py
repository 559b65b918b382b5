"""The witness of an environment: what Parameter Store was told was released last. Rules without I/O.

A witness is written after head was swapped, and never trusted in head's place. Behind head it means nothing: a
promoter died, or was slow, between the two writes. Ahead of head it means that head was put back, or is lost.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, ValidationError

from bundlectl.model.canonical import canonical, parse_document
from bundlectl.model.errors import BundlectlError, UsageError, VerificationFailed
from bundlectl.model.types import STORE_NAME, Digest, Strict
from bundlectl.registry.layout import Place

ROOT = "/bundlectl"
_SCHEME = "ssm:"

Serial = Annotated[int, Field(ge=1, lt=10**16)]


class Locator(Strict):
    """What ``/bundlectl/<registry>`` holds: where the registry is, and the pin that trust starts from."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=1024)]
    """What the store is opened by: ``s3://bucket/prefix``."""
    pin: Digest
    """The digest of one version of the keyring."""
    registry: Digest
    """The registry's id: the digest of keyring 1."""


class Witness(Strict):
    """What ``/bundlectl/<registry>/<app>/<env>`` holds: the release that was made last."""

    epoch: Serial
    serial: Serial
    digest: Digest
    """Of head's bytes."""
    note: Annotated[str, StringConstraints(max_length=500)] | None = None
    """Why it was written by ``registry repair``, where it was."""

    @property
    def place(self) -> Place:
        """Where it stands in the order of releases."""
        return Place(self.epoch, self.serial)


class HeadPutBack(VerificationFailed):
    """The witness is ahead of head, or head is not what was witnessed."""

    code = "head_put_back"


def name_of(uri: str) -> str | None:
    """Give the registry's name in ``ssm:/bundlectl/<name>``; None for another kind of address.

    Raises:
        UsageError: it begins like one and is none.
    """
    if not uri.startswith(_SCHEME):
        return None
    above, _, name = uri.removeprefix(_SCHEME).rpartition("/")
    if above != ROOT or STORE_NAME.fullmatch(name) is None:
        raise UsageError(
            f"{uri!r} does not name a registry in Parameter Store.",
            fix="Use ssm:/bundlectl/NAME, with lower-case letters, digits and - in the name.",
        )
    return name


def locator_name(registry: str) -> str:
    """Give the name of the parameter that says where a registry is."""
    return f"{ROOT}/{registry}"


def witness_name(registry: str, app: str, environment: str) -> str:
    """Give the name of an environment's witness."""
    return f"{locator_name(registry)}/{app}/{environment}"


def parse_locator(text: str, registry: str) -> Locator:
    """Read a locator.

    Raises:
        VerificationFailed: it does not have its form.
    """
    name = locator_name(registry)
    try:
        return Locator.model_validate(parse_document(text.encode(), what=name))
    except (ValidationError, BundlectlError) as error:
        raise VerificationFailed(
            f"{name} in Parameter Store does not say where the registry is.",
            why=str(error),
            fix=f"Its administrator writes it: bundlectl registry locate {_SCHEME}{name} --registry s3://…",
        ) from error


def parse_witness(text: str, name: str) -> Witness:
    """Read a witness.

    Raises:
        HeadPutBack: it does not have its form, so that nothing contradicts who put head back.
    """
    try:
        return Witness.model_validate(parse_document(text.encode(), what=name))
    except (ValidationError, BundlectlError) as error:
        raise HeadPutBack(
            f"{name} in Parameter Store is no witness.",
            why=str(error),
            fix="Find out who wrote it. Then: bundlectl registry repair APP:ENV --reason TEXT",
        ) from error


def to_text(document: Locator | Witness) -> str:
    """Write a locator or a witness as Parameter Store holds it."""
    return canonical(document.form()).decode()


def contradiction(witness: Witness | None, head: Place | None, digest: str | None) -> str | None:
    """Say how a witness that was read before head contradicts it; None if it does not.

    Args:
        witness: None if nothing was witnessed.
        head: head's place; None if there is no head.
        digest: of head's bytes.
    """
    if witness is None:
        return None
    if head is None:
        return f"Parameter Store witnessed a release at {witness.place}, and there is no head."
    if witness.place > head:
        return f"Head is at {head}, and Parameter Store witnessed a release at {witness.place}."
    if witness.place == head and witness.digest != digest:
        return f"Head at {head} is {digest}, and Parameter Store witnessed {witness.digest} there."
    return None


def check_witness(witness: Witness | None, head: Place | None, digest: str | None, app: str, environment: str) -> None:
    """Refuse to release on top of a head that a witness contradicts.

    Raises:
        HeadPutBack: it does.
    """
    why = contradiction(witness, head, digest)
    if why is None or witness is None:
        return
    raise HeadPutBack(
        f"The head of {app}:{environment} was put back, or is lost: that is tampering.",
        why=why,
        fix="Find out who can write to the registry. "
        f"Then: bundlectl registry repair {app}:{environment} --reason TEXT",
        details={"witness": witness.form(), "head": str(head) if head else None, "digest": digest},
    )
