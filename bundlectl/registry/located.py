"""Where a registry is found: at a store's address, or by a name in Parameter Store, which then also witnesses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bundlectl.model.errors import NotFound, UsageError
from bundlectl.registry.witness import (
    Locator,
    Witness,
    locator_name,
    name_of,
    parse_locator,
    parse_witness,
    to_text,
    witness_name,
)

if TYPE_CHECKING:
    from bundlectl.storage.ssm import ParameterStore

Environment = tuple[str, str]
"""App and environment."""


class Located:
    """A registry's address, and its witnesses where it has any.

    Args:
        url: what ``open_store`` takes.
        name: the registry's name in Parameter Store; None if it was addressed directly, and then nothing witnesses.
        locator: what Parameter Store says of it.
        parameters: Parameter Store; there wherever there is a name.
        read: witnesses that were read together with the locator, as text; each is used once.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str | None = None,
        locator: Locator | None = None,
        parameters: ParameterStore | None = None,
        read: dict[Environment, str | None] | None = None,
    ) -> None:
        self.url = url
        self.name = name
        self.locator = locator
        self._parameters = parameters
        self._read = dict(read or {})

    def witness(self, app: str, environment: str) -> Witness | None:
        """Read what was witnessed of an environment. To be read before head: head may only be newer.

        Raises:
            HeadPutBack: what is there is no witness.
            BackendUnavailable: Parameter Store cannot be asked.
        """
        return self.witnesses([(app, environment)])[app, environment]

    def witnesses(self, environments: Sequence[Environment]) -> dict[Environment, Witness | None]:
        """Read the witnesses of several environments, ten in a call. See :meth:`witness`."""
        if self.name is None or self._parameters is None:
            return dict.fromkeys(environments)
        read = {one: self._read.pop(one) for one in environments if one in self._read}
        names = {one: witness_name(self.name, *one) for one in environments}
        missing = [one for one in environments if one not in read]
        if missing:
            found = self._parameters.read([names[one] for one in missing])
            read |= {one: found.get(names[one]) for one in missing}
        return {one: parse_witness(text, names[one]) if text else None for one, text in read.items()}

    def bear_witness(self, app: str, environment: str, witness: Witness) -> None:
        """Write what was released; nothing to do for a registry without a name.

        Raises:
            BackendUnavailable: it was not written, or may not have been.
        """
        if self.name is not None and self._parameters is not None:
            name = witness_name(self.name, app, environment)
            self._parameters.write(name, to_text(witness), f"The newest release of {app}:{environment}")


def locate(uri: str, expected: Sequence[Environment] = ()) -> Located:
    """Find a registry.

    Args:
        uri: ``ssm:/bundlectl/<name>``, or what ``open_store`` takes, which is then believed without a look.
        expected: environments whose witnesses will be asked for: they are read in the same call.

    Raises:
        NotFound: Parameter Store does not know the name.
        VerificationFailed: what it says has not the form of a locator.
        BackendUnavailable: it cannot be asked.
    """
    name = name_of(uri)
    if name is None:
        return Located(uri)
    # Loads boto3: only where it is needed.
    from bundlectl.storage.ssm import ParameterStore

    parameters = ParameterStore()
    names = {one: witness_name(name, *one) for one in expected}
    found = parameters.read([locator_name(name), *names.values()])
    if locator_name(name) not in found:
        raise NotFound(
            f"Parameter Store has no {locator_name(name)} in this account and region.",
            fix=f"Check AWS_PROFILE and AWS_REGION; or write it: bundlectl registry locate {uri} --registry s3://…",
        )
    locator = parse_locator(found[locator_name(name)], name)
    read = {one: found.get(text) for one, text in names.items()}
    return Located(locator.url, name=name, locator=locator, parameters=parameters, read=read)


def recalled(name: str, locator: Locator) -> Located:
    """Give a registry as it was found before, when Parameter Store cannot be asked where it is now."""
    from bundlectl.storage.ssm import ParameterStore

    return Located(locator.url, name=name, locator=locator, parameters=ParameterStore())


def publish(uri: str, locator: Locator) -> None:
    """Write where a registry is and what pins its keyring: an administrator's permission.

    Raises:
        UsageError: the URI is no name in Parameter Store.
        BackendUnavailable: it was not written.
    """
    name = name_of(uri)
    if name is None:
        raise UsageError(f"{uri!r} is no name in Parameter Store.", fix="Use ssm:/bundlectl/NAME.")
    from bundlectl.storage.ssm import ParameterStore

    ParameterStore().write(locator_name(name), to_text(locator), f"Where the bundlectl registry {name} is")
