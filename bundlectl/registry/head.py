"""What the bytes of a head say, by their form alone: nothing here checks a signature.

``bundlectl.resolver.trusted`` decides whether a head is to be believed. The registry needs only its place.
"""

from __future__ import annotations

from pydantic import ValidationError

from bundlectl.model.attestation import RELEASE, Envelope
from bundlectl.model.canonical import canonical, parse_document
from bundlectl.model.errors import VerificationFailed
from bundlectl.model.release import MAX_HEAD, Head, Release
from bundlectl.model.types import wrong_fields
from bundlectl.registry.layout import Place
from bundlectl.trust.envelope import open_statement


def parse_head(data: bytes, what: str) -> tuple[Head, Release]:
    """Parse a head and the release in it.

    Args:
        data: the bytes as they are stored.
        what: what they are, for messages.

    Raises:
        VerificationFailed: over 256 KiB, or not of that form.
    """
    if len(data) > MAX_HEAD:
        raise VerificationFailed(
            f"{what} has {len(data)} bytes; a head has at most {MAX_HEAD}.",
            fix="Name fewer attestations as evidence, or shorten the bindings.",
        )
    value = parse_document(data, what=what)
    try:
        head = Head.model_validate(value)
    except ValidationError as error:
        raise VerificationFailed(f"{what} does not have the form of a head.", why=wrong_fields(error)) from error
    if canonical(value) != data:
        # Its digest is what the next release names, so a head has one spelling: not a space may be added.
        raise VerificationFailed(
            f"{what} is not spelled as a head is.",
            why="Something was added or rewritten that changes no value.",
            fix="Find out who can write to the registry, and restore the head.",
        )
    return head, release_of(head.release, what)


def release_of(envelope: Envelope, what: str) -> Release:
    """Parse the release that an envelope carries.

    Raises:
        VerificationFailed: it carries no release, or one about another bundle or app than its subject.
    """
    statement = open_statement(envelope)
    if statement.predicateType != RELEASE:
        raise VerificationFailed(
            f"{what} carries a statement that is no release.", why=f"Its predicate type is {statement.predicateType}."
        )
    if not {"apiVersion", "kind"} <= statement.predicate.keys():
        raise VerificationFailed(f"{what} carries a release that does not say what it is.")
    try:
        release = Release.model_validate(statement.predicate)
    except ValidationError as error:
        raise VerificationFailed(
            f"{what} carries a release in a form that this version does not know.",
            why=wrong_fields(error),
            fix="If it was written by a newer bundlectl, use that version or a newer one.",
        ) from error
    if (statement.subject[0].name, statement.bundle) != (release.app, release.bundle):
        raise VerificationFailed(
            f"{what} carries a release of {release.app}@{release.bundle} under another subject.",
            why=f"The statement is about {statement.subject[0].name}@{statement.bundle}.",
        )
    return release


def place(release: Release) -> Place:
    """Give a release's place in its environment."""
    return Place(release.epoch, release.serial)
