"""What is sent to the model: MiniJinja templates, compiled once per bundle, rendered per request.

A template reads ``input.<declared name>``, ``passages``, ``task`` and ``response_format``, and nothing else; there
is no loader, no clock and no chance. Values are data: a value that looks like a template is copied, never rendered,
and reaches templates in read-only form. Fuel bounds how long a template runs (a loop over loops ends in an error);
it charges for text that a template makes. See DESIGN section 8.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from minijinja import Environment, TemplateError

from bundlectl.model.components import Prompt
from bundlectl.stages import template_text
from bundlectl.stages.errors import PromptError, PromptFinding

FUEL = 1_000_000
"""Steps that one message's template may take; about 20 ms of a plain loop."""

PASSAGE_FIELDS = ("n", "title", "section", "text", "document", "updated")
"""What a template may read of a passage. ``section`` is the heading path as text, ``A > B``."""

_NAMES = frozenset({"input", "passages", "task", "response_format"})
_REACHES_OUT = {"include", "import", "from", "extends"}
_REMOVED_GLOBALS = ("debug", "namespace")
"""``debug`` prints what is loaded. ``namespace`` carries state from turn to turn of a loop: lists that double, which
fuel does not count, and a namespace inside itself, which ends the process when it is printed."""
_MAX_CODE = 4000
"""Characters of one ``{{ … }}`` or ``{% … %}``: the engine compiles long chains of operators recursively."""
_READ = re.compile(r"\{\{\s*(input\.[A-Za-z_][A-Za-z0-9_]*|task|response_format)\s*\}\}")
_RENDER_ERRORS = (TemplateError, AttributeError, KeyError, TypeError, ValueError, RecursionError)
"""The engine's own error, and what calling a method on a value of ours can raise."""


class PassageLike(Protocol):
    """A piece of a document, as retrieval packs it."""

    @property
    def n(self) -> int: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def section(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def document(self) -> str: ...  # noqa: D102
    @property
    def updated(self) -> str | None: ...  # noqa: D102


class _Plain(NamedTuple):
    """A message without logic: its texts with ``%s`` between them, and which inputs stand there; the engine is slow."""

    texts: str
    reads: tuple[str, ...]

    def filled(self, input: Mapping[str, Any], task: str, response_format: str) -> str | None:
        """Give the message; ``None`` where a value is no string, and how it is written is the engine's affair."""
        values = []
        for name in self.reads:
            value = task if name == "task" else response_format if name == "response_format" else input.get(name[6:])
            if value.__class__ is not str:
                return None
            values.append(value)
        return self.texts % tuple(values)


class CompiledPrompt:
    """A prompt whose templates are parsed and checked. Rendering is a pure function of what it is given."""

    def __init__(self, name: str, prompt: Prompt, environment: Environment) -> None:
        self.name = name
        self.inputs = frozenset(prompt.inputs)
        self._environment = environment
        self._messages = [
            (message.role, f"message {index}", _plain(environment, f"message {index}", message.content))
            for index, message in enumerate(prompt.messages)
        ]

    @classmethod
    def compile(cls, name: str, prompt: Prompt) -> CompiledPrompt:
        """Parse every message and check what it reads.

        Each message is also rendered once with made-up values, so that one that never ends is found here.

        Raises:
            PromptError: syntax; a variable, input, passage field, filter or test that does not exist; input read
                other than by a name; a tag that reaches for another template; no end. All findings together.
        """
        environment = _environment()
        findings: list[PromptFinding] = []
        for index, message in enumerate(prompt.messages):
            if line := template_text.too_long(message.content, _MAX_CODE):
                findings.append(PromptFinding(index, line, f"more than {_MAX_CODE:,} characters of code in one piece"))
                continue
            try:
                environment.add_template(f"message {index}", message.content)
            except TemplateError as error:
                findings.append(PromptFinding(index, error.line or 1, error.detail or error.kind))
            else:
                findings += _check(environment, index, message.content, frozenset(prompt.inputs))
        if not findings:
            compiled = cls(name, prompt, environment)
            findings += compiled._endless()
        if findings:
            raise PromptError(name, findings)
        return compiled

    def render(
        self,
        input: Mapping[str, Any],
        passages: Sequence[PassageLike],
        task: str,
        response_format: str,
    ) -> list[dict[str, str]]:
        """Give the messages as ``{"role", "content"}``.

        Args:
            input: JSON values; names that the prompt does not declare are not shown to it.
            passages: what was retrieved, in order.
            task: the task's name.
            response_format: ``structured_json`` or ``text``.

        Raises:
            PromptError: a declared input that the template reads is missing, the template runs out of fuel, or an
                operation in it fails on these values.
        """
        messages = []
        context: dict[str, Any] | None = None
        for index, (role, template, plain) in enumerate(self._messages):
            content = plain.filled(input, task, response_format) if plain is not None else None
            if content is None:
                context = context or {
                    "input": _frozen({name: input[name] for name in input if name in self.inputs}),
                    "passages": tuple(map(_passage, passages)),
                    "task": task,
                    "response_format": response_format,
                }
                try:
                    content = self._environment.render_template(template, **context)
                except _RENDER_ERRORS as error:
                    raise PromptError(self.name, [_rendering(index, error)]) from None
            messages.append({"role": role, "content": content})
        return messages

    def _endless(self) -> Iterator[PromptFinding]:
        """Find messages that run out of fuel on made-up values.

        Any other error may be the values' fault (a template may compute with a number), and is left to rendering.
        """
        passage = {**dict.fromkeys(PASSAGE_FIELDS, "value"), "n": 1}
        context = {
            "input": _frozen(dict.fromkeys(self.inputs, "value")),
            "passages": (_frozen(passage), _frozen(passage)),
            "task": "task",
            "response_format": "text",
        }
        for index, (_, template, _) in enumerate(self._messages):
            try:
                self._environment.render_template(template, **context)
            except _RENDER_ERRORS as error:
                if isinstance(error, TemplateError) and error.kind == "OutOfFuel":
                    yield _rendering(index, error)


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text without any model's tokenizer: one per 4 characters of ASCII, one per other.

    It is for choosing routes and reserving budgets, where it should rather be too high than too low.
    """
    ascii_characters = len(text) if text.isascii() else len(text.encode("ascii", "ignore"))
    return (ascii_characters + 3) // 4 + len(text) - ascii_characters


def _plain(environment: Environment, template: str, source: str) -> _Plain | None:
    """Give a template as texts and reads; ``None`` where it has logic, or the engine makes anything else of it."""
    parts = _READ.split(source.removesuffix("\n"))
    texts, reads = parts[::2], tuple(parts[1::2])
    if any(code in text for text in texts for code in ("{{", "{%", "{#")):
        return None
    plain = _Plain("%s".join([text.replace("%", "%%") for text in texts]), reads)
    input = {name[6:]: f"<{name}> & {{{{ 'x' }}}}\n" for name in reads if name.startswith("input.")}
    try:
        made = environment.render_template(template, input=input, task="task", response_format="text")
    except _RENDER_ERRORS:
        return None
    return plain if made == plain.filled(input, "task", "text") else None


def _environment() -> Environment:
    environment = Environment(fuel=FUEL, undefined_behavior="strict", auto_escape_callback=lambda _: False)
    for name in _REMOVED_GLOBALS:
        environment.remove_global(name)
    return environment


def _check(environment: Environment, index: int, source: str, inputs: frozenset[str]) -> Iterator[PromptFinding]:
    code = template_text.code_of(source)
    for tag, line in template_text.tags(code):
        if tag in _REACHES_OUT:
            yield PromptFinding(index, line, f"'{tag}' reaches for another template", "a prompt stands alone")
    yield from _check_names(environment, index, source, inputs)
    for variable, field, line in template_text.fields_of_loops(code, "passages"):
        if field not in PASSAGE_FIELDS:
            yield PromptFinding(
                index, line, f"a passage has no '{field}' ({variable}.{field})", f"it has {', '.join(PASSAGE_FIELDS)}"
            )
    for name, line in template_text.filters(code):
        if _unknown(environment, f"1|{name}", "UnknownFilter"):
            yield PromptFinding(index, line, f"there is no filter '{name}'")
    for name, line in template_text.tests(code):
        if _unknown(environment, f"1 is {name}", "UnknownTest"):
            yield PromptFinding(index, line, f"there is no test '{name}'")


def _check_names(environment: Environment, index: int, source: str, inputs: frozenset[str]) -> Iterator[PromptFinding]:
    """Find reads of names that are not there. The engine gives them without lines; the text gives the lines."""
    dotted, subscripts = template_text.dotted_subscripts(source)
    code = template_text.code_of(dotted)
    declared = f"declared inputs: {', '.join(sorted(inputs)) or 'none'}"
    for path in sorted(environment.undeclared_variables_in_str(dotted, nested=True)):
        root, _, rest = path.partition(".")
        line = template_text.line_of_read(code, path)
        if root in environment.globals:
            continue
        if root not in _NAMES:
            yield PromptFinding(
                index, line, f"undeclared variable '{root}'", f"a template reads {', '.join(sorted(_NAMES))}"
            )
        elif root == "input" and not rest:
            yield PromptFinding(
                index, line, "'input' is read as a whole, so what it reads cannot be checked", "read input.<name>"
            )
        elif root == "input":
            name = rest.partition(".")[0]
            name = subscripts.get(name, name)
            if name not in inputs:
                yield PromptFinding(index, line, f"undeclared input '{name}'", declared)


def _unknown(environment: Environment, expression: str, kind: str) -> bool:
    try:
        environment.eval_expr(expression)
    except TemplateError as error:
        return error.kind == kind
    return False


def _rendering(index: int, error: Exception) -> PromptFinding:
    if not isinstance(error, TemplateError):
        return PromptFinding(index, 1, f"the template fails: {error}")
    line = error.line or 1
    if error.kind == "OutOfFuel":
        return PromptFinding(
            index, line, f"the template was stopped after {FUEL:,} steps", "loop over passages or inputs only"
        )
    return PromptFinding(index, line, f"the template fails: {error.detail or error.kind}")


class _ReadOnly(dict[str, Any]):
    """What stands behind a mapping proxy: its copy is a proxy too, its text is JSON."""

    def copy(self) -> Any:
        return MappingProxyType(self)

    def __str__(self) -> str:
        return json.dumps(self, ensure_ascii=False, default=dict)


def _frozen(value: Any) -> Any:
    """Give a JSON value such that no method a template can call changes it: templates may call Python's methods."""
    if isinstance(value, dict):
        frozen = {key: item if isinstance(item, str) else _frozen(item) for key, item in value.items()}
        return MappingProxyType(_ReadOnly(frozen))
    if isinstance(value, list | tuple):
        return tuple(_frozen(item) for item in value)
    return value


def _passage(passage: PassageLike) -> Any:
    return MappingProxyType(
        _ReadOnly(
            n=passage.n,
            title=passage.title,
            section=" > ".join(passage.section),
            text=passage.text,
            document=passage.document,
            updated=passage.updated or "",
        )
    )
