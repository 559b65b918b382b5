"""The command line as typer has it: every command by its words, and command lines found in texts."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from bundlectl.cli.program import program

Command = TyperCommand | TyperGroup

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`(bundlectl [^`\n]+(?:\n[^`\n]+)?)`")
_ENDS = {"|", "&&", "||", ";", ">", "&", "<"}


def root() -> TyperGroup:
    """Give the program."""
    group = typer.main.get_command(program())
    assert isinstance(group, TyperGroup)
    return group


def every() -> dict[str, Command]:
    """Give every command by its words: ``promote``, ``index build``; the program itself is ``""``."""
    found: dict[str, Command] = {"": root()}

    def walk(group: TyperGroup, words: str) -> None:
        for name, command in sorted(group.commands.items()):
            found[f"{words} {name}".strip()] = command
            if isinstance(command, TyperGroup):
                walk(command, f"{words} {name}".strip())

    walk(root(), "")
    return found


@dataclass(frozen=True)
class Line:
    """A command line in a text. ``whole``: it stands in a block, to be typed as it is."""

    place: str
    words: list[str]
    whole: bool

    def problem(self) -> str | None:
        """Say what the program would not take, None if it would take all of it."""
        command: Command = root()
        words = list(self.words)
        while isinstance(command, TyperGroup):
            if not words or words[0].startswith("-"):
                return _unknown_option(command, words)
            if words[0].isupper():
                return None  # a placeholder for any verb
            if words[0] not in command.commands:
                return f"there is no command {words[0]!r}"
            command = command.commands[words.pop(0)]
        return _unknown_option(command, words) or (_missing(command, words) if self.whole else None)


def _options(command: Command) -> dict[str, TyperOption]:
    context = typer.Context(command)
    found = [one for one in command.get_params(context) if isinstance(one, TyperOption)]
    return {name: one for one in found for name in (*one.opts, *one.secondary_opts)}


def _unknown_option(command: Command, words: list[str]) -> str | None:
    known = {**_options(command), "-h": None, "--help": None}
    for word in words:
        if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in known:
            return f"{command.name} has no option {word}"
    return None


def _missing(command: Command, words: list[str]) -> str | None:
    """Check that what the command cannot do without is there, and nothing that it does not know."""
    options = _options(command)
    given: set[str] = set()
    arguments = 0
    rest = iter(words)
    for word in rest:
        option = options.get(word.partition("=")[0]) if word.startswith("-") else None
        if option is None:
            arguments += not word.startswith("-")
            continue
        given.add(str(option.name))
        if not option.is_flag and "=" not in word and next(rest, None) is None:
            return f"{word} lacks its value"
    if "--help" in words:
        return None
    lacking = [name for name, one in options.items() if one.required and one.name not in given]
    if lacking:
        return f"{command.name} needs {', '.join(lacking)}"
    taken = [one for one in command.params if isinstance(one, TyperArgument)]
    least = sum(one.required for one in taken)
    most = 1000 if any(one.nargs < 0 for one in taken) else len(taken)
    return None if least <= arguments <= most else f"{command.name} takes {least} to {most} arguments, not {arguments}"


def blocks(file: Path, language: str = "sh") -> list[str]:
    """Give the fenced blocks of a language."""
    return [body for found, body in _FENCE.findall(file.read_text(encoding="utf-8")) if found == language]


def shell_lines(block: str) -> Iterator[str]:
    """Give the commands of a shell block: continued lines joined, comments left out."""
    for line in block.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if line and not line.startswith("#"):
            yield line


def lines_of(file: Path) -> list[Line]:
    """Give every bundlectl command line in a Markdown file."""
    text = file.read_text(encoding="utf-8")
    found: list[Line] = []
    for language, body in _FENCE.findall(text):
        if language in ("sh", "bash", "console", "shell", ""):
            for line in shell_lines(body):
                found += _split(file.name, line, whole=True)
    for inline in _INLINE.findall(_FENCE.sub("", text)):
        found += _split(file.name, " ".join(inline.split()), whole=False)
    return found


def _split(place: str, line: str, *, whole: bool) -> Iterator[Line]:
    """Find `bundlectl …` in a line, up to whatever ends a command."""
    try:
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words = list(lexer)
    except ValueError:
        words = line.split()
    while "bundlectl" in words:
        words = words[words.index("bundlectl") + 1 :]
        end = next((at for at, word in enumerate(words) if word in _ENDS), len(words))
        yield Line(f"{place}: {line}", words[:end], whole)
        words = words[end:]
