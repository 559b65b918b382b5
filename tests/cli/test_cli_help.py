"""`--help` of every command, word for word; and it is all that a newcomer needs."""

from __future__ import annotations

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bundlectl.cli.program import FAMILIES, program
from tests.cli import commands, golden

EVERY = commands.every()


def _help(words: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    result = CliRunner().invoke(program(words.partition(" ")[0]), [*words.split(), "--help"], prog_name="bundlectl")
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("words", EVERY, ids=lambda words: words or "bundlectl")
def test_help(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden.check(f"help/{words.replace(' ', '-') or 'bundlectl'}", _help(words, monkeypatch))


def test_every_word_is_found_in_the_family_that_is_said_to_have_it() -> None:
    words = [word for family in FAMILIES.values() for word in family]
    assert sorted(words) == sorted(words for words in EVERY if words and " " not in words)
    for word in words:
        alone = get_command(program(word))
        assert isinstance(alone, TyperGroup) and word in alone.commands
        assert len(alone.commands) < len(words)


def test_no_golden_file_outlives_its_command() -> None:
    names = {words.replace(" ", "-") or "bundlectl" for words in EVERY}
    files = {file.stem for file in (golden.FOLDER / "help").glob("*.txt")}
    if golden.UPDATE:
        for name in files - names:
            (golden.FOLDER / "help" / f"{name}.txt").unlink()
    else:
        assert files == names


@pytest.mark.parametrize("words", [words for words, one in EVERY.items() if not isinstance(one, TyperGroup)])
def test_every_verb_says_what_it_does_and_how(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = _help(words, monkeypatch)
    assert "Examples:" in shown
    assert f"bundlectl {words}" in shown.partition("Examples:")[2]
    for option in ("--registry", "--output", "--debug"):
        assert option in shown
    command = EVERY[words]
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{words}: {parameter.name} has no help"


def _examples(words: str) -> list[commands.Line]:
    epilog = EVERY[words].epilog or ""
    lines = [line.strip() for line in epilog.splitlines() if "bundlectl " in line]
    return [found for line in lines for found in commands._split(words, line.partition("    #")[0], whole=True)]


@pytest.mark.parametrize("words", [words for words, one in EVERY.items() if one.epilog])
def test_examples_parse(words: str) -> None:
    lines = _examples(words)
    assert lines
    assert [line for line in lines if line.problem()] == [], [line.problem() for line in lines]
