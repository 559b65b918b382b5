"""The whole demo story with its registry in S3: real servers on loopback stand in for AWS, and `serve` is a process."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from bundlectl.actions.context import Context, Silent
from bundlectl.actions.demo import demo
from bundlectl.actions.index import index_diff
from bundlectl.actions.locating import registry_locate
from bundlectl.actions.rollback import rollback
from bundlectl.actions.status import history, status
from tests.support.aws import STAND_INS, StandIn, stand_in
from tests.support.workspace import environment


class Listener:
    """Keeps what the demo tells."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.results: list[Any] = []

    def scene(self, title: str, text: str) -> None:
        """Drop it."""

    def command(self, line: str) -> None:
        """Drop it."""

    def result(self, result: object) -> None:
        """Keep it."""
        self.results.append(result)

    def note(self, text: str) -> None:
        """Keep it."""
        self.notes.append(text)


@pytest.fixture(params=STAND_INS)
def aws(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    started = stand_in(request.param)
    for key in [key for key in os.environ if key.startswith("BUNDLECTL_")]:
        monkeypatch.delenv(key)
    for key, value in started.environ.items():
        monkeypatch.setenv(key, value)
    return started


def context(url: str) -> Context:
    return Context(
        registry_url=url,
        clock=lambda: datetime.now(UTC),
        new_id=lambda: secrets.token_hex(12),
        reporter=Silent(),
        environ=environment(),
    )


def test_the_demo_story(aws: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = aws.bucket()
    ctx, told = context(f"s3://{bucket}/team/registry"), Listener()
    played = demo(ctx, tmp_path / "content", told)
    assert [answer.serial for answer in played.answers] == [1, 2, 3]
    assert played.answers[0].bundle == played.answers[2].bundle != played.answers[1].bundle
    assert any("refused: " in note and "older" in note for note in told.notes), told.notes
    assert sorted(path.name for path in (tmp_path / ".bundlectl").iterdir()) == [
        "batches",
        "cache",
        "journals",
        "keys",
        "pin",
        "receipt.key",
        "receipts",
    ], "keys, pin and receipts stay here"
    kept = {entry["Key"] for entry in aws.client("s3").list_objects_v2(Bucket=bucket)["Contents"]}
    assert all(key.startswith("team/registry/") for key in kept)
    assert not any("key" in key.rpartition("/")[2] and key.endswith(".pem") for key in kept)

    # ---- found by its name, by a machine that has nothing but that
    name = f"ssm:/bundlectl/team-{secrets.token_hex(3)}"
    located = registry_locate(context(ctx.registry_url), name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    there = context(name)
    found = {one.environment: one for one in status(there).environments}
    assert (found["prod"].serial, found["prod"].action, found["prod"].alarms) == (3, "rollback", [])
    assert history(there, "support:prod", verify=True).verified
    snapshots = [result.snapshot for result in told.results if type(result).__name__ == "IndexBuilt"]
    assert index_diff(context(name), "support", snapshots[0], snapshots[1]).changes, "tables are fetched from S3"
    assert located.pin == (tmp_path / ".bundlectl" / "pin").read_text().strip()

    # ---- what is released under the name is witnessed
    monkeypatch.chdir(tmp_path)
    back = rollback(replace(context(name)), "support:prod", reason="forth again", confirmed="prod")
    assert (back.released.serial, back.released.warnings) == (4, [])
    parameter = f"{name.removeprefix('ssm:')}/support/prod"
    value = cast(str, aws.client("ssm").get_parameter(Name=parameter)["Parameter"]["Value"])
    assert back.released.release in value
