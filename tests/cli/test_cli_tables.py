"""The tables that people read at night, word for word, at a fixed time and width; on a pipe nothing is cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bundlectl.actions.bind import bind
from bundlectl.actions.build import build
from bundlectl.actions.context import Context
from bundlectl.actions.evaluate import evaluate
from bundlectl.actions.init import init
from bundlectl.actions.promote import promote
from bundlectl.actions.rollback import rollback
from bundlectl.cli import session
from bundlectl.cli.program import program
from tests.cli import golden
from tests.support.workspace import APP, Workspace

START = datetime(2026, 11, 1, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two versions, a rollback and an outage, each an hour after the other."""
    made = Workspace(tmp_path_factory.mktemp("tables") / APP)
    hours = itertools.count()

    def ctx() -> Context:
        now = START + timedelta(hours=next(hours))
        return made.context(clock=lambda: now)

    init(ctx(), made.folder, app=APP)
    for text, reason in (("from nothing else", "first release"), ("from nothing else at all", "a stricter prompt")):
        made.edit("prompts/answer.yaml", "from nothing else", text)
        build(ctx(), made.folder)
        evaluate(ctx(), str(made.folder))
        for name in ("dev", "staging", "prod"):
            promote(ctx(), str(made.folder), environment=name, reason=reason, confirmed=name)
    rollback(
        ctx(), f"{APP}:prod", reason="answers got worse, see the customers' mails of this morning", confirmed="prod"
    )
    bind(ctx(), f"{APP}:dev", reason="try without it", disable=["quotes"])
    return made


@pytest.fixture(autouse=True)
def fixed(monkeypatch: pytest.MonkeyPatch, work: Workspace) -> Iterator[None]:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return START + timedelta(days=10)

    monkeypatch.setattr(session, "datetime", Clock)
    monkeypatch.chdir(work.folder)
    for name in ("BUNDLECTL_REGISTRY", "BUNDLECTL_PIN", "BUNDLECTL_SIGNER", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    yield


def shown(*argv: str, code: int = 0) -> str:
    result = CliRunner().invoke(program(argv[0]), list(argv))
    assert result.exit_code == code, result.output
    return golden.without_digests(result.stdout)


@pytest.mark.parametrize(
    ("name", "argv", "code"),
    [
        ("status", ("status",), 0),
        ("history", ("history", f"{APP}:prod"), 0),
        ("history-verify", ("history", f"{APP}:prod", "--verify"), 0),
        ("plan-pass", ("promote", f"{APP}:staging", "--to", "prod", "--reason", "x", "--plan", "--confirm", "prod"), 0),
        ("plan-inconclusive", ("promote", f"{APP}:staging", "--to", "prod", "--reason", "x", "--plan"), 3),
        ("policy", ("policy", "show", APP), 0),
        ("keyring", ("keyring", "show"), 0),
        ("diff", ("diff", f"{APP}:prod", f"{APP}:staging"), 0),
        ("diff-same", ("diff", f"{APP}:prod@1", f"{APP}:prod"), 0),
    ],
)
def test_table(name: str, argv: tuple[str, ...], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = shown(*argv, code=code)
    golden.check(f"tables/{name}", wide)
    monkeypatch.setenv("COLUMNS", "80")
    assert "…" not in wide, "on a pipe no column is cut"


def test_a_narrow_terminal_loses_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = shown("status")
    golden.check("tables/status-80", narrow)
    for name in ("dev", "staging", "prod"):
        assert f"{APP}:{name} " in narrow


def test_digests_that_writes_print_are_whole(work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    result = CliRunner().invoke(program("build"), ["build", "."])
    assert result.exit_code == 0
    assert len(result.stdout.split()[0]) == len(f"{APP}@sha256:") + 64
    assert Path(work.folder).is_dir()
