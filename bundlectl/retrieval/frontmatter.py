"""The labels at the head of a Markdown file: strict YAML between two lines of ``---``.

Only strings and lists of strings mean anything here, so nothing of YAML that could surprise is let through:
no tags, anchors or aliases, no duplicate keys, and a word that YAML would turn into a boolean or a number is
refused where a label is meant (``tenant: no`` is nobody's tenant).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field

import yaml

from bundlectl.model.errors import Problem
from bundlectl.model.types import NAME

MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
MAX_NODES = 2000

_FENCE = re.compile(r"---[ \t]*\n")
_END = re.compile(r"^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.MULTILINE)
_UPDATED = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?")
_STRING = "tag:yaml.org,2002:str"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_KEYS = ("title", "tenant", "scope", "roles", "updated")


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """What a file says of itself. ``body`` is the offset in the file's text at which its content begins.

    ``lines`` holds the line of each key that was given, counted from 1.
    """

    body: int
    title: str | None = None
    tenant: str | None = None
    scope: str | None = None
    roles: tuple[str, ...] | None = None
    updated: str | None = None
    lines: dict[str, int] = field(default_factory=dict)


def parse_front_matter(text: str, file: str) -> tuple[FrontMatter, list[Problem]]:
    """Read the front matter of a Markdown text with LF line ends; a text without any has none.

    Keys that mean nothing here (a site generator's, say) are left alone, unless they look like one of ours
    misspelt: a label that is silently not read would be given by the index source, or by nobody.
    """
    start = _FENCE.match(text)
    if start is None:
        return FrontMatter(body=0), []
    end = _END.search(text, start.end())
    if end is None:
        problem = Problem(file, 1, "the front matter has no end", "a line of --- after the labels")
        return FrontMatter(body=len(text)), [problem]
    source = text[start.end() : end.start()]
    body = end.end()
    if len(source.encode()) > MAX_BYTES:
        problem = Problem(file, 1, f"the front matter is larger than {MAX_BYTES} bytes", "a few labels only")
        return FrontMatter(body=body), [problem]
    try:
        refused = _refused_by_events(source)
        root = None if refused else yaml.compose(source, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = (mark.line if mark else 0) + 2
        return FrontMatter(body=body), [Problem(file, line, f"the front matter is not YAML: {error.problem}")]
    except (yaml.YAMLError, ValueError) as error:
        return FrontMatter(body=body), [Problem(file, 1, f"the front matter is not YAML: {error}")]
    if refused:
        line, message = refused
        return FrontMatter(body=body), [Problem(file, line, message, "plain labels only")]
    if root is None:
        return FrontMatter(body=body), []
    return _Labels(file).read(root, body)


def _refused_by_events(source: str) -> tuple[int, str] | None:
    """Find what is refused before a tree is built: the parser's events are flat and cost nothing to count."""
    depth = nodes = 0
    for event in yaml.parse(source, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 2 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            return line, "an alias (*) in the front matter"
        if getattr(event, "anchor", None) is not None:
            return line, "an anchor (&) in the front matter"
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
            tag = getattr(event, "tag", None)
            if tag is not None:
                return line, f"tag {tag} in the front matter"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH or nodes > MAX_NODES:
            return line, f"the front matter is deeper than {MAX_DEPTH} levels or has more than {MAX_NODES} values"
    return None


class _Labels:
    """Reads the labels of one file, collecting every problem."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []
        self.lines: dict[str, int] = {}

    def read(self, root: yaml.Node, body: int) -> tuple[FrontMatter, list[Problem]]:
        if not isinstance(root, yaml.MappingNode):
            self._problem(root, "the front matter is no mapping", "lines of 'key: value'")
            return FrontMatter(body=body), self.problems
        values: dict[str, yaml.Node] = {}
        for key, value in root.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem(key, "a key of the front matter is no plain word")
            elif key.value in values:
                self._problem(key, f"duplicate key '{key.value}'", f"'{key.value}' once")
            else:
                values[key.value] = value
                self.lines[key.value] = key.start_mark.line + 2
                self._check_key(key)
        found = FrontMatter(
            body=body,
            title=self._string(values, "title"),
            tenant=self._string(values, "tenant"),
            scope=self._scope(values),
            roles=self._roles(values),
            updated=self._updated(values),
            lines=self.lines,
        )
        return found, self.problems

    def _problem(self, node: yaml.Node, message: str, right: str = "") -> None:
        mark = node.start_mark
        self.problems.append(Problem(self.file, mark.line + 2, message, right, column=mark.column + 1))

    def _check_key(self, key: yaml.ScalarNode) -> None:
        if key.value in _KEYS:
            return
        near = difflib.get_close_matches(key.value.lower(), _KEYS, n=1, cutoff=0.8)
        if near:
            self._problem(key, f"unknown key '{key.value}'", f"did you mean '{near[0]}'?")

    def _string(self, values: dict[str, yaml.Node], key: str) -> str | None:
        node = values.get(key)
        return None if node is None else self._text(node, key)

    def _text(self, node: yaml.Node, what: str) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._problem(node, f"'{what}' must be a string")
        elif node.tag != _STRING:
            kind = node.tag.rsplit(":", 1)[-1]
            self._problem(
                node, f"'{what}' must be a string, and YAML reads {node.value or 'nothing'} as {kind}", "quote it"
            )
        elif not node.value.strip():
            self._problem(node, f"'{what}' is empty", "leave the line out, or give a value")
        elif "\x00" in node.value:
            self._problem(node, f"'{what}' holds a NUL character")
        else:
            return str(node.value).strip()
        return None

    def _scope(self, values: dict[str, yaml.Node]) -> str | None:
        scope = self._string(values, "scope")
        if scope is not None and not NAME.fullmatch(scope):
            self._problem(values["scope"], f"'{scope}' is no scope", "lower-case letters, digits, _ and -")
            return None
        return scope

    def _roles(self, values: dict[str, yaml.Node]) -> tuple[str, ...] | None:
        node = values.get("roles")
        if node is None:
            return None
        if not isinstance(node, yaml.SequenceNode) or not node.value:
            self._problem(node, "'roles' must be a list of at least one role", 'roles: [support_agent] or roles: ["*"]')
            return None
        roles = [self._text(item, "roles") for item in node.value]
        return tuple(sorted({role for role in roles if role is not None})) or None

    def _updated(self, values: dict[str, yaml.Node]) -> str | None:
        node = values.get("updated")
        if node is None:
            return None
        if isinstance(node, yaml.ScalarNode) and node.tag in (_STRING, _TIMESTAMP) and _UPDATED.fullmatch(node.value):
            return str(node.value)
        self._problem(node, "'updated' must be a date", "2026-11-23 or 2026-11-23T18:00:00Z")
        return None
