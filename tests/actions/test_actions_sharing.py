"""Where a Redis is named, and what is never said of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bundlectl.actions.context import Context
from bundlectl.actions.sharing import open_redis
from bundlectl.model.errors import NotFound, UsageError

SECRET = "redis://:hunter2@redis.internal:6379/0"


def context(environ: Mapping[str, str]) -> Context:
    return Context("unused", lambda: datetime(2026, 11, 23, tzinfo=UTC), lambda: "id", environ=environ)


async def test_where_redis_is_named(tmp_path: Path) -> None:
    file = tmp_path / "address"
    file.write_text(SECRET + "\n")
    places: list[tuple[str | None, dict[str, str]]] = [
        ("redis://127.0.0.1:6379/0", {}),
        (None, {"BUNDLECTL_REDIS": SECRET}),
        ("env:ADDRESS", {"ADDRESS": SECRET}),
        (f"file:{file}", {}),
        ("unix:///run/redis.sock", {}),
    ]
    for named, environ in places:
        link = open_redis(context(environ), named, print)
        assert link is not None and link.up
        await link.close()
    assert open_redis(context({}), None, print) is None


@pytest.mark.parametrize(
    ("named", "environ"),
    [
        (SECRET, {}),
        ("http://redis.internal", {}),
        ("env:ADDRESS", {"ADDRESS": "hunter2"}),
        ("env:NOTHING", {}),
        ("redis.internal:6379", {}),
    ],
)
def test_what_is_no_address_is_refused_without_showing_it(named: str, environ: dict[str, str]) -> None:
    with pytest.raises((UsageError, NotFound)) as caught:
        open_redis(context(environ), named, print)
    said = f"{caught.value.what} {caught.value.why} {caught.value.fix}"
    assert "hunter2" not in said
