"""Parameters in AWS Systems Manager: short texts under names, where machines look things up.

Parameter Store gives no compare-and-swap, so nothing here is ever trusted state (DESIGN 4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.storage.aws import (
    DEADLINE_SECONDS,
    READ_SECONDS,
    Patience,
    Refused,
    Unanswered,
    giving_up,
    open_client,
    refusal,
)
from bundlectl.storage.store import StoreUnavailable

Reply = TypeVar("Reply")

MAX_VALUE_BYTES = 4096
"""What a parameter of the standard tier holds."""
BATCH = 10
"""Names per call."""


class ParameterStore:
    """Reads and writes parameters. Threads may share it.

    Args:
        client: a boto3 client of SSM that does not repeat calls; by default one from the default chain.
        patience: how long to repeat what may be repeated.
    """

    def __init__(self, *, client: Any = None, patience: Patience | None = None) -> None:
        self._client = client if client is not None else open_client("ssm")
        self._patience = patience or Patience(DEADLINE_SECONDS, READ_SECONDS)

    def read(self, names: Sequence[str]) -> dict[str, str]:
        """Give the values of those of the names that exist: one call for each ten.

        Raises:
            StoreUnavailable: it cannot be asked, or does not permit it.
        """
        found: dict[str, str] = {}
        for at in range(0, len(names), BATCH):
            some = list(names[at : at + BATCH])
            reply = self._ask(lambda some=some: self._client.get_parameters(Names=some), "ssm:GetParameters", some[0])  # type: ignore[misc]
            found |= {entry["Name"]: entry["Value"] for entry in reply["Parameters"]}
        return found

    def write(self, name: str, value: str, description: str) -> None:
        """Put a value in place of whatever is there. No labels: they would keep old versions alive.

        Raises:
            UsageError: it is too long.
            BackendUnavailable: it was not written, or may not have been.
        """
        if len(value.encode()) > MAX_VALUE_BYTES:
            raise UsageError(f"{name} would be over {MAX_VALUE_BYTES} bytes.", fix="Shorten what it says.")
        # Doing it twice is the same as once, so a lost answer is no reason to stop.
        self._ask(
            lambda: self._client.put_parameter(
                Name=name, Value=value, Type="String", Overwrite=True, Description=description
            ),
            "ssm:PutParameter",
            name,
        )

    def _ask(self, call: Callable[[], Reply], action: str, name: str) -> Reply:
        did = "written to" if action == "ssm:PutParameter" else "read from"
        what = f"{name} was not {did} Parameter Store"
        try:
            return self._patience.ask(call, self._patience.until(), write=False)
        except Refused as error:
            said, fix = refusal(error.failure, action, f"arn:aws:ssm:*:*:parameter{name}")
            raise StoreUnavailable(f"{what}: {said}.", why=error.failure.why, fix=fix) from error
        except Unanswered as error:
            said, fix = giving_up(error.failure, what, self._patience.deadline, "AWS_ENDPOINT_URL_SSM")
            raise BackendUnavailable(said, why=error.failure.why, fix=fix) from error
