"""AWS's documented rules of policy evaluation, as far as the registry's templates use them.

An explicit deny wins; without an allow it is refused. What a condition's key is absent for: ``Bool``, ``StringLike``
are false, ``...IfExists`` is true, ``Null`` says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

Statement = Mapping[str, Any]


def allowed(
    action: str,
    resource: str,
    context: Mapping[str, str],
    *,
    identity: Iterable[Statement],
    resource_policy: Iterable[Statement] = (),
) -> bool:
    """Judge one request of a principal of the same account."""
    said = [one["Effect"] for one in (*identity, *resource_policy) if _meant(one, action, resource, context)]
    return "Deny" not in said and "Allow" in said


def _meant(statement: Statement, action: str, resource: str, context: Mapping[str, str]) -> bool:
    return (
        any(_like(one, action, cased=False) for one in _list(statement["Action"]))
        and any(_like(one, resource) for one in _list(statement["Resource"]))
        and all(
            _holds(operator, key, _list(values), context)
            for operator, keys in statement.get("Condition", {}).items()
            for key, values in keys.items()
        )
    )


def _holds(operator: str, key: str, values: list[str], context: Mapping[str, str]) -> bool:
    found = context.get(key)
    if operator == "Null":
        return (found is None) == (values == ["true"])
    if found is None:
        return operator.endswith("IfExists")
    test = operator.removesuffix("IfExists")
    if test == "Bool":
        return found in values
    assert test == "StringLike", operator
    return any(_like(one, found) for one in values)


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _like(pattern: str, text: str, *, cased: bool = True) -> bool:
    regex = "".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch(regex, text, re.DOTALL if cased else re.DOTALL | re.IGNORECASE) is not None
