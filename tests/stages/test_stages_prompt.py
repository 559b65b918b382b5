"""Prompts: what a template may read, what is found before the first request, and that values stay data."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import minijinja
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.components import Message, Prompt
from bundlectl.stages.errors import PromptError
from bundlectl.stages.prompt import CompiledPrompt, estimate_tokens

EXAMPLE = Path(__file__).parents[2] / "bundles" / "support" / "prompts" / "answer.yaml"


@dataclass(frozen=True)
class Packed:
    n: int = 1
    title: str = "Title"
    section: tuple[str, ...] = ("A", "B")
    text: str = "Some text."
    document: str = "docs/a.md"
    updated: str | None = None


def compiled(*contents: str, inputs=("question",)) -> CompiledPrompt:
    messages = [Message(role="user", content=content) for content in contents]
    return CompiledPrompt.compile("answer", Prompt(inputs=list(inputs), messages=messages))


def rendered(content: str, values=None, passages=(Packed(),), inputs=("question",)) -> str:
    values = {"question": "Q?"} if values is None else values
    (message,) = compiled(content, inputs=inputs).render(values, passages, "task", "text")
    return message["content"]


def test_the_example_renders():
    prompt = CompiledPrompt.compile("answer", Prompt.model_validate(yaml.safe_load(EXAMPLE.read_text())))
    messages = prompt.render({"question": "How?"}, [Packed()], "customer_support_answer", "structured_json")
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "Some text." in messages[1]["content"]
    assert "How?" in messages[1]["content"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{{ input.question }}", "Q?"),
        ("{{ input[\"question\"] }} {{ input['question'] }}", "Q? Q?"),
        (
            "{% for p in passages %}[{{ p.n }}] {{ p.section }}{{ p.updated }}{{ loop.index }}{% endfor %}",
            "[1] A > B1",
        ),
        ("{{ passages[0].document }} {{ task }} {{ response_format }}", "docs/a.md task text"),
        ('{{ passages | map(attribute="text") | join(" ") | upper }}', "SOME TEXT."),
        ("{# {{ nothing }} #}{% raw %}{{ nothing }}{% endraw %}", "{{ nothing }}"),
        ('{{ "{{ input.nope }}" }}', "{{ input.nope }}"),
        ("{% for input in passages %}{{ input.title }}{% endfor %}", "Title"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m(input.question) }}", "<Q?>"),
        ("{{ '<b>&' }}{{ input.question }}", "<b>&Q?"),
    ],
)
def test_a_template_reads_what_it_may(content, expected):
    assert rendered(content) == expected


def test_a_name_with_a_dash_is_read_by_subscript():
    assert rendered('{{ input["my-name"] }}', {"my-name": 3}, inputs=("my-name",)) == "3"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("a\n{{ input.nope }}", 2, "undeclared input 'nope'"),
        ("{{ input.question }}\n\n{{ input.nope.deeper }}", 3, "undeclared input 'nope'"),
        ('\n{{ input["no-pe"] }}', 2, "undeclared input 'no-pe'"),
        ("{% if input.nope is defined %}{% endif %}", 1, "undeclared input 'nope'"),
        ("{% if false %}\n{{ input.nope | default('x') }}{% endif %}", 2, "undeclared input 'nope'"),
        ("{% set x = input %}{{ x.nope }}", 1, "'input' is read as a whole"),
        ("{{ input | tojson }}", 1, "'input' is read as a whole"),
        ("{{ tenant }}", 1, "undeclared variable 'tenant'"),
        ("{{ debug() }}", 1, "undeclared variable 'debug'"),
        ("{{ now() }}", 1, "undeclared variable 'now'"),
        ("{% for p in passages %}\n{{ p.tittle }}{% endfor %}", 2, "a passage has no 'tittle'"),
        ("{% if false %}\n{% include 'secret' %}{% endif %}", 2, "'include' reaches for another template"),
        ("{% import 'x' as y %}", 1, "'import' reaches"),
        ("{% extends 'x' %}", 1, "'extends' reaches"),
        ("\n\n{% if false %}{{ 1 | nosuch }}{% endif %}", 3, "there is no filter 'nosuch'"),
        ("{% if false and 1 is nosuch %}{% endif %}", 1, "there is no test 'nosuch'"),
        ("a\nb\n{{ x y }}", 3, "unexpected identifier"),
        ("{% for p in passages %}", 1, "unexpected end"),
        ("{{ " + "1+" * 20_000 + "1 }}", 1, "characters of code"),
    ],
)
def test_faults_are_found_when_compiling_with_message_and_line(content, line, message):
    with pytest.raises(PromptError) as raised:
        compiled("fine", content)
    (finding, *_) = raised.value.findings
    assert (finding.message, finding.line) == (1, line)
    assert message in finding.text
    assert raised.value.problems[0].file == "prompt answer, message 2"


def test_all_faults_come_together():
    with pytest.raises(PromptError) as raised:
        compiled("{{ a }}", "{{ b }} {{ input.c }}", "{{ x y }}")
    assert [finding.message for finding in raised.value.findings] == [0, 1, 1, 2]


@pytest.mark.parametrize(
    "content",
    [
        "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}",
        "{% for p in passages%}{% for a in range(9000)%}{% for b in range(99)%}x{% endfor%}{% endfor%}{% endfor%}",
        '{{ "x" | indent(1000000000) }}',
    ],
)
def test_a_template_without_end_is_stopped_when_compiling(content):
    with pytest.raises(PromptError, match="stopped after 1,000,000 steps"):
        compiled(content)


def test_a_template_that_only_some_values_make_endless_is_stopped_when_rendering():
    prompt = compiled(
        "{% if input.question == 'go' %}"
        "{% for a in range(9000) %}{% for b in range(9000) %}{% endfor %}{% endfor %}{% endif %}"
    )
    prompt.render({"question": "stay"}, (), "task", "text")
    with pytest.raises(PromptError, match="message 1:1: the template was stopped"):
        prompt.render({"question": "go"}, (), "task", "text")


def test_no_state_is_carried_between_turns_of_a_loop():
    with pytest.raises(PromptError, match="undeclared variable 'namespace'"):
        compiled("{% set ns = namespace(s=[1]) %}{% set ns.s = ns %}{{ ns }}")


def test_a_missing_input_is_an_error_and_an_undeclared_one_is_not_shown():
    with pytest.raises(PromptError, match=r"input\.question.* is undefined"):
        rendered("{{ input.question }}", {})
    assert "s3cret" not in rendered("{{ input.question }}", {"question": "q", "other": "s3cret"})


@pytest.mark.parametrize(
    "content",
    [
        "{{ passages.clear() }}",
        "{{ passages.append(1) }}",
        "{{ input.question.pop('a') }}",
        "{{ input.question.update(b=1) }}",
        "{{ input.question.b.append(1) }}",
    ],
)
def test_a_template_cannot_change_what_it_is_given(content):
    values = {"question": {"a": 1, "b": [1]}}
    passages = [Packed()]
    with pytest.raises(PromptError, match="message 1:1: the template fails"):
        rendered(content, values, passages)
    assert values == {"question": {"a": 1, "b": [1]}}
    assert passages == [Packed()]


def test_a_copy_of_a_value_is_no_way_around_and_reads_as_json():
    values = {"question": {"a": [1], "b": {"c": "ü"}}}
    assert rendered("{{ input.question.copy() }}", values) == '{"a": [1], "b": {"c": "ü"}}'
    with pytest.raises(PromptError):
        rendered("{{ input.question.copy().clear() }}", values)


templates = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "{{ 7 * 7 }}",
            "{% for x in range(9) %}x{% endfor %}",
            "{% include 'a' %}",
            "{{ input }}",
            "}}{{ task }}{{",
            "{#",
        ]
    ),
    st.from_regex(re.compile(r"\{\{ *[a-z.]{1,9} *\}\}"), fullmatch=True),
)
ECHO = compiled("{{ input.question }}\x00{% for p in passages %}{{ p.title }}\x00{{ p.text }}\x00{% endfor %}")


@settings(max_examples=200, deadline=None)
@given(templates, templates, templates)
def test_values_are_copied_and_never_rendered(question, title, text):
    (message,) = ECHO.render({"question": question}, [Packed(title=title, text=text)], "task", "text")
    assert message["content"] == f"{question}\x00{title}\x00{text}\x00"


LITERALS = [" 100 % \n", "\r\n", "{ { ", "%s", "\n", "\n\n", "é"]
READS = ["{{ input.question }}", "{{input.question}}", "{{ task }}"]
LOGIC = ["{{ input.question | upper }}", "{%- if task %}{{ task }}{% endif %}", "{# nothing #}", "{{- task -}}"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(LITERALS + READS + LOGIC), min_size=1, max_size=5),
    st.one_of(st.text(max_size=8), st.integers()),
)
def test_messages_without_logic_are_as_the_engine_makes_them(pieces: list[str], question: object):
    environment = minijinja.Environment(undefined_behavior="strict", auto_escape_callback=lambda _: False)
    known = {"input": {"question": question}, "task": "task", "response_format": "text"}
    assert rendered("".join(pieces), {"question": question}) == environment.render_str("".join(pieces), **known)


def test_tokens_are_estimated_high_rather_than_low():
    assert estimate_tokens("") == 0
    assert estimate_tokens("four") == 1
    assert estimate_tokens("fives") == 2
    assert estimate_tokens("日本語") == 3


def test_the_room_can_be_used_without_the_heavy_rooms():
    code = (
        "import sys\n"
        "from bundlectl.stages import access, guards, output, prompt\n"
        "assert not {'boto3', 'lancedb', 'starlette', 'httptools', 'typer', 'json_repair'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
