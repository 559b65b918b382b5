"""Does a request fit the release that would answer it? Judged before anything is done for it."""

from __future__ import annotations

import hmac
import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_json

from bundlectl.model.contract import Request
from bundlectl.model.errors import UsageError

if TYPE_CHECKING:
    from bundlectl.router.assemble import Compiled, CompiledTask

_SORTED = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"))


class ContractError(UsageError):
    """The request does not fit the contract. ``fields``: each problem with its field's path, e.g. ``input.a``."""

    code = "contract"

    def __init__(self, fields: list[tuple[str, str]], *, fix: str = "", receipt: str | None = None) -> None:
        details: dict[str, Any] = {"fields": [{"field": field, "message": message} for field, message in fields]}
        if receipt is not None:
            details["receipt"] = receipt
        super().__init__(
            "The request does not fit the contract.",
            why="; ".join(f"{field}: {message}" for field, message in fields),
            fix=fix,
            details=details,
        )
        self.fields = fields


def check_contract(request: Request, compiled: Compiled) -> CompiledTask:
    """Give the task that the request names, after checking what it asks of it.

    Raises:
        ContractError: the task is unknown; the profile or the format is not the task's; the prompt's
            declared inputs are not exactly what is sent.
    """
    task = compiled.tasks.get(request.task)
    if task is None:
        raise ContractError([("task", f"this release has no such task; it has {_names(compiled.tasks)}")])
    asked = request.input.get(task.question_input, "")
    if (
        request.policy_profile not in task.profiles
        or request.response_format not in (None, task.format)
        or request.input.keys() != task.prompt.inputs
        or not isinstance(asked, str)
    ):
        raise ContractError(_misfits(request, task))
    return task


def _misfits(request: Request, task: CompiledTask) -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    if request.policy_profile not in task.profiles:
        fields.append(("policy_profile", f"not a profile of this task; it has {_names(task.profiles)}"))
    if request.response_format not in (None, task.format):
        fields.append(("response_format", f"this task answers in {task.format}"))
    fields += [(f"input.{name}", "missing: the prompt reads it") for name in task.inputs if name not in request.input]
    fields += [
        (f"input.{name}", f"unknown; the prompt reads {_names(task.inputs)}")
        for name in request.input
        if name not in task.inputs
    ]
    if not isinstance(request.input.get(task.question_input, ""), str):
        fields.append((f"input.{task.question_input}", "must be a string: it is what is searched for"))
    return fields


def input_digest(value: dict[str, Any], key: bytes) -> str:
    """Give the keyed digest of an input: ``hmac-sha256-<key>:<hex>``. Plain hashes of short questions can be guessed.

    ``<key>`` tells digests of different keys apart: those cannot be compared.

    Raises:
        ContractError: a string holds half a surrogate pair, which is no text.
    """
    try:
        data = _sorted(value)
    except (UnicodeEncodeError, PydanticSerializationError) as error:
        raise ContractError([("input", "holds half a surrogate pair, which is no Unicode text")]) from error
    prefix, keyed = _keyed(key)
    keyed = keyed.copy()
    keyed.update(data)
    return prefix + keyed.hexdigest()


def _sorted(value: dict[str, Any]) -> bytes:
    """Give JSON with its keys in order. Of strings alone pydantic makes the same bytes, in a third of the time."""
    if {str}.issuperset(map(type, value.values())):
        return to_json(dict(sorted(value.items())))
    return _SORTED.encode(value).encode()


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> tuple[str, hmac.HMAC]:
    """Give what digests of a key begin with, and an HMAC that has taken in the key and nothing else."""
    name = hmac.digest(key, b"bundlectl receipt key", "sha256").hex()[:8]
    return f"hmac-sha256-{name}:", hmac.new(key, digestmod="sha256")


def _names(names: Any) -> str:
    return ", ".join(names) or "none"
