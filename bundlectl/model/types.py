"""The small types every document is made of: names, digests, paths, durations, times; and the strict base."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
)

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
STORE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
DURATION = re.compile(r"([1-9][0-9]{0,8}|0)(ms|s|m|h|d)")

_set = object.__setattr__
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Strict(BaseModel):
    """Base of every document of ours: frozen, strictly typed, unknown fields refused.

    ``model_dump(mode="json", by_alias=True, exclude_none=True)`` (see :meth:`form`) is the form that is
    written, signed and digested: a field that is absent means the old behaviour, for ever.
    """

    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", populate_by_name=True, ser_json_inf_nan="strings"
    )

    def form(self) -> dict[str, Any]:
        """Give the JSON object that is written: defaults written out, absent optionals left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def unchecked(cls, values: dict[str, Any]) -> Self:
        """Make one of values that this program made itself, every field of it named; nothing is checked.

        The dictionary becomes its own: whoever gives it lets go of it. (Dozens of keyword arguments take five times
        as long to pass.)

        For the path of a request, where checking its own words cost the router a tenth of its time. The router's
        tests check whatever is made so.

        Raises:
            TypeError: a field is missing, or there are too many.
        """
        if len(values) != len(cls.__pydantic_fields__):
            raise TypeError(f"{cls.__name__} has {len(cls.__pydantic_fields__)} fields, {len(values)} were given")
        made = cls.__new__(cls)
        _set(made, "__dict__", values)
        _set(made, "__pydantic_fields_set__", _all_fields(cls))
        _set(made, "__pydantic_extra__", None)
        _set(made, "__pydantic_private__", None)
        return made


_NOTHING: set[str] = set()

StrictT = TypeVar("StrictT", bound=Strict)


def lean(value: StrictT) -> StrictT:
    """Forget which fields a value was made with, and give it back: nobody asks, and it is a third of its memory."""
    _set(value, "__pydantic_fields_set__", _NOTHING)
    return value


@lru_cache
def _all_fields(model: type[BaseModel]) -> set[str]:
    return set(model.__pydantic_fields__)


def _time(value: Any) -> Any:
    if isinstance(value, str):
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value):
            raise ValueError("a time is written like 2026-11-23T18:00:00Z (UTC, whole seconds)")
        return datetime.fromisoformat(value)  # thirty times as fast as strptime, and Z is UTC
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs its zone")
        return value.astimezone(UTC).replace(microsecond=0)
    raise ValueError("a time is written like 2026-11-23T18:00:00Z")


def format_time(value: datetime) -> str:
    """Write a time as RFC 3339, UTC, whole seconds: ``2026-11-23T18:00:00Z``."""
    return value.astimezone(UTC).isoformat()[:19] + "Z"


def seconds(duration: str) -> float:
    """Give the seconds of a duration such as ``800ms``, ``8s``, ``15m``, ``24h`` or ``7d``."""
    found = DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"{duration!r} is no duration: a whole number and ms, s, m, h or d, e.g. 8s")
    return int(found[1]) * _SECONDS[found[2]]


def _check_duration(value: str) -> str:
    seconds(value)
    return value


def check_relative_path(value: str) -> str:
    """Check that a path is relative, stays under its folder, is NFC and uses ``/``.

    Raises:
        ValueError: it is not.
    """
    if not value or value.startswith("/") or "\\" in value or "\x00" in value:
        raise ValueError(f"{value!r} is not a relative path with / between its parts")
    if any(part in ("", ".", "..") for part in value.split("/")):
        raise ValueError(f"{value!r} must stay under its folder: no '..', '.' or empty part")
    if unicodedata.normalize("NFC", value) != value:
        raise ValueError(f"{value!r} is not in Unicode normal form C")
    return value


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A logical name inside a bundle: task, model, route, index, scope, profile, tenant-independent."""

StoreName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
"""A name that is part of a storage key: app or environment."""

Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
"""``sha256:`` and 64 lower-case hex digits."""

Duration = Annotated[str, AfterValidator(_check_duration)]
"""A whole number with ms, s, m, h or d; kept as written."""

RelativePath = Annotated[str, AfterValidator(check_relative_path)]
"""A path under the folder of the file that names it."""

Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]
"""A short text for people: a reason, a title."""

Principal = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}$")]
"""The id of a principal in the keyring."""

Time = Annotated[
    datetime,
    BeforeValidator(_time),
    Field(json_schema_extra={"format": "date-time"}),
    PlainSerializer(format_time, return_type=str, when_used="always"),
]
"""UTC, whole seconds; written ``2026-11-23T18:00:00Z``."""


def wrong_fields(error: ValidationError) -> str:
    """Say in one line which fields are wrong and how, the first three, with nothing of what stands in them.

    What was read may be anybody's: neither a name of a field nor a value becomes a line of a log.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(ascii(part).strip("'\"") for part in one["loc"])[:100] for one in found[:3]]
    said = [f"{place}: {one['msg']}" if place else one["msg"] for place, one in zip(places, found, strict=False)]
    more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
    return "; ".join(said) + more
