"""How the command line behaves in scripts and pipes: errors as JSON, no colours, no questions, quiet ends."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundlectl import cli
from bundlectl.cli import program
from tests.support.workspace import APP, Workspace, environment, spawn

ESCAPE = "\x1b["


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.at(tmp_path_factory.mktemp("live"), live=True)


@pytest.fixture
def work(live: Workspace, tmp_path: Path) -> Workspace:
    shutil.copytree(live.folder, tmp_path / APP, symlinks=True)
    return Workspace(tmp_path / APP)


PROMOTE = ("promote", ".", "--to", "prod", "--reason", "x")


@pytest.mark.parametrize(
    ("argv", "code", "kind"),
    [
        (("show", f"{APP}@sha256:00000000"), 2, "not_found"),
        (("status", "nobody"), 2, "not_found"),
        (("history", f"{APP}:nowhere"), 2, "not_found"),
        (("status", "--registry", "no/such/folder"), 2, "usage"),
        (("status", "--registry", "ftp://example.com/x"), 2, "usage"),
        (("validate", "no/such/folder"), 2, "source"),
        (("verify", f"{APP}:prod@99"), 2, "not_found"),
        (("rollback", f"{APP}:dev", "--reason", "x"), 2, "usage"),
        (("rollback", f"{APP}:dev@7", "--reason", "x"), 2, "not_found"),
        (("bind", f"{APP}:dev", "--disable-model", "nobody", "--reason", "x"), 2, "usage"),
        (PROMOTE, 3, "gate_not_passed"),
        (("receipts", "show", "000000000000"), 2, "not_found"),
        (("promote", ".", "--to", "moon", "--reason", "x"), 2, "not_found"),
        (("promote", ".", "--to", "dev", "--reason", "x", "--signer", "file:no.pem"), 2, "usage"),
        (("promote", ".", "--to", "dev", "--reason", "x", "--signer", "awskms:alias/x"), 2, "usage"),
        (("promote", ".", "--to", "dev", "--reason", "x", "--plan-file", "no.json"), 2, "usage"),
        (("import", "oci:no/such/folder"), 2, "not_found"),
        (("export", f"{APP}:prod", "elsewhere"), 2, "usage"),
        (("explain", "00000000"), 2, "not_found"),
        (("index", "show", "nobody", "--app", APP), 2, "not_found"),
        (("ask", f"{APP}:prod", "--tenant", "acme", "--role", "customer", "--task", "other", "Why?"), 2, "usage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_errors_as_json(live: Workspace, argv: tuple[str, ...], code: int, kind: str) -> None:
    before = sorted(live.folder.rglob("*"))
    ran = live.warm(*argv, "-o", "json", code=code)
    assert ran.out == ""
    error = ran.error
    assert (error["error"], error["exit_code"]) == (kind, code)
    assert set(error) >= {"error", "message", "why", "fix", "exit_code"}
    assert error["message"]
    assert error["why"] or error["fix"] or kind == "source", "a message alone leaves one where one was"
    assert "Traceback" not in ran.err
    assert sorted(live.folder.rglob("*")) == before


def test_errors_as_text(live: Workspace) -> None:
    for argv, code in ((("rollback", f"{APP}:dev", "--reason", "x"), 2), (PROMOTE, 3)):
        error = live.warm(*argv, "-o", "json", code=code).error
        text = live.warm(*argv, code=code).err
        assert f"error: {error['message']}" in text
        assert f"  fix: {error['fix']}" in text


def test_traceback_with_debug_only(live: Workspace) -> None:
    argv = ("show", f"{APP}@sha256:00000000")
    assert "Traceback" not in live.warm(*argv, code=2).err
    assert "Traceback" in live.warm(*argv, "--debug", code=2).err


def test_no_registry_says_how_to_get_one(tmp_path: Path) -> None:
    ran = Workspace(tmp_path).warm("status", code=2)
    assert "There is no registry at .bundlectl/registry." in ran.err
    assert "bundlectl init" in ran.err
    assert "--registry" in ran.err


def test_a_registry_that_was_there_is_unavailable_and_nothing_is_made_in_its_place(tmp_path: Path) -> None:
    lost = Workspace.at(tmp_path)
    lost.registry.rename(lost.home / "elsewhere")
    for argv in (("status",), PROMOTE, ("history", f"{APP}:dev")):
        ran = lost.warm(*argv, code=6)
        assert "is not there" in ran.err and "init" not in ran.err
    assert not lost.registry.exists()


def test_registry_by_option_variable_and_url(live: Workspace, tmp_path: Path) -> None:
    here = Workspace(tmp_path)
    for argv, env in (
        (("--registry", str(live.registry)), {}),
        (("--registry", live.registry.as_uri()), {}),
        ((), {"BUNDLECTL_REGISTRY": str(live.registry)}),
    ):
        ran = here.warm("status", *argv, "-o", "json", env=env)
        assert len(ran.json["environments"]) == 3


@pytest.mark.parametrize("argv", [("promote",), ("promote", "x"), ("nonsense",), ("status", "--nonsense"), ()])
def test_wrong_usage_exits_2(live: Workspace, argv: tuple[str, ...]) -> None:
    ran = live.warm(*argv, code=2)
    assert "Usage:" in ran.out + ran.err
    assert "Traceback" not in ran.err


def _on_terminal(work: Workspace, *argv: str, typed: bytes = b"", **env: str) -> tuple[int, str]:
    """Run a command with a terminal for stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "bundlectl", *argv],
        cwd=work.folder,
        env={**environment(**env), "TERM": "xterm-256color"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    os.write(ours, typed)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # EIO is how a terminal says that nobody is at its other end any more
    os.close(ours)
    return process.wait(20), shown.decode()


def test_colours_on_a_terminal_only(live: Workspace) -> None:
    assert ESCAPE not in live.warm("status").out
    code, shown = _on_terminal(live, "status")
    assert code == 0
    assert ESCAPE in shown
    code, shown = _on_terminal(live, "status", NO_COLOR="1")
    assert code == 0
    coloured = [part for part in shown.split(ESCAPE)[1:] if part[:2] in ("31", "32", "33", "34", "35", "36")]
    assert not coloured


def test_prod_is_asked_for_on_a_terminal_only(work: Workspace) -> None:
    refused = work.run(*PROMOTE, code=3)
    assert "Type its name" not in refused.err
    code, shown = _on_terminal(work, *PROMOTE, typed=b"no\n")
    assert (code, "Type its name" in shown) == (3, True)
    code, shown = _on_terminal(work, *PROMOTE, typed=b"prod\n")
    assert code == 0, shown
    assert "release 2" in shown


def test_a_reader_who_goes_away(work: Workspace) -> None:
    for number in range(30):
        work.release("dev", reason=f"number {number}")
    command = f"{sys.executable} -m bundlectl history {APP}:dev -o json"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -1"],
        cwd=work.folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
    process = spawn(work.folder, "status", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(20) == 0


def _interrupt(process: subprocess.Popen[str]) -> tuple[int, str]:
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    return process.returncode, said


def test_interrupted_while_it_waits(work: Workspace) -> None:
    """A command that waits, here for the lock of an environment, ends at once and says no more than that."""
    import fcntl

    with (work.environment_folder("dev") / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = spawn(
            work.folder,
            *("promote", ".", "--to", "dev", "--reason", "x"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(2.5)
        assert process.poll() is None
        code, said = _interrupt(process)
    assert code == 130
    assert "Traceback" not in said
    assert said.strip() == "interrupted"


def test_interrupted_before_a_command_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130


def test_dev_once_and_port_taken(work: Workspace) -> None:
    question = "Within how many days can I return an unused item?"
    ran = work.run("dev", ".", "--question", question, "--tenant", "acme", "--role", "agent", "--once")
    assert "30 days" in ran.out
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ran = work.run("dev", ".", "--port", port, code=6)
    assert port in ran.err


def test_version(live: Workspace) -> None:
    from bundlectl import __version__

    assert live.warm("--version").out.strip() == __version__


def test_every_json_output_is_one_value(live: Workspace) -> None:
    for argv in (
        ("status",),
        ("history", f"{APP}:prod"),
        ("show", f"{APP}:prod"),
        ("validate", "."),
        ("keyring", "show"),
        ("policy", "show", APP),
        ("verify", f"{APP}:prod"),
        ("diff", f"{APP}:prod", f"{APP}:dev"),
        ("receipts", "list"),
    ):
        ran = live.warm(*argv, "-o", "json")
        assert isinstance(json.loads(ran.out), dict)
        assert ran.err == ""


def test_an_import_for_another_app_is_wrong_usage(live: Workspace, tmp_path: Path) -> None:
    layout = f"oci:{tmp_path / 'layout'}"
    live.warm("export", f"{APP}:prod", layout)
    ran = live.warm("import", layout, "--app", "other", code=2)
    assert f"a bundle of {APP}, not of other" in ran.err
    live.warm("import", layout, "--app", APP)


def test_an_approval_for_elsewhere_is_not_worth_a_line(tmp_path: Path) -> None:
    work = Workspace.at(tmp_path, live=True)
    work.next_version()
    work.warm("promote", ".", "--to", "dev", "--reason", "first")
    work.warm("approve", f"{APP}:dev", "--for", "prod", "--reason", "looks good")
    ran = work.warm("promote", f"{APP}:dev", "--to", "dev", "--reason", "again", "--plan")
    assert "set aside" not in ran.err + ran.out


def test_a_denied_question_without_scopes_names_the_option(live: Workspace) -> None:
    ask = ("ask", f"{APP}:prod", "--tenant", "acme", "--role", "nobody", "Why?")
    denied = live.warm(*ask)
    assert "access_denied" in denied.out and "asked for every scope of the task" in denied.err
    assert "--scope" in denied.err
    assert "--scope" not in live.warm(*ask, "--scope", "public").err
