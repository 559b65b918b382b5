"""Output: valid, repaired or invalid; and schemas that may not be used."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.model.components import Output
from bundlectl.stages.errors import SchemaError
from bundlectl.stages.output import CompiledOutput

EXAMPLE = Path(__file__).parents[2] / "bundles" / "support" / "output" / "answer.schema.json"


def compiled(schema) -> CompiledOutput:
    return CompiledOutput.compile(Output(format="structured_json", schema=schema))


ANSWER = compiled(json.loads(EXAMPLE.read_text()))
GOOD = {"answer": "Yes [1].", "citations": [1]}


def test_a_valid_answer_is_given_parsed():
    result = ANSWER.check(json.dumps(GOOD))
    assert (result.value, result.outcome, result.errors) == (GOOD, "valid", ())


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"answer": "Yes [1].", "citations": [1]}\n```',
        'Here it is: {"answer": "Yes [1].", "citations": [1]}',
        '{"answer": "Yes [1].", "citations": [1,]}',
        "{'answer': 'Yes [1].', 'citations': [1]}",
        '{"answer": "Yes [1].", "citations": [1',
        '{"answer": "Yes [1].", "citations": [1]} I hope that this helps.',
        '{"answer": "Y\\u0065s [1].", "citations": [1],}',
    ],
)
def test_broken_json_is_repaired_and_said_to_be(text):
    result = ANSWER.check(text)
    assert (result.value, result.outcome) == (GOOD, "repaired")
    if not text.rstrip("`").strip().endswith(("}", ".")):
        assert ANSWER.check(text, cut=True).outcome == "invalid", "what is missing may be more than brackets"


@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "no", "citations": []} Wait: {"answer": "yes", "citations": []}',
        '{"answer": "Yes", "citations": [1 000]}',
        '{"answer": "Yes", "citations": [12e]}',
        '{"answer": "Yes", "citations": [1], // unless it was revoked\n}',
        '{"answer": "Yes", "citations": [1], not "more"}',
    ],
)
def test_a_repair_that_would_lose_a_word_or_a_digit_is_none(text):
    assert ANSWER.check(text).outcome == "invalid"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(1, 10**6), max_size=4),
    st.integers(0, 30),
    st.sampled_from(["", " ", ",", "'", '"', "{", "1", " 0", "]", "e", "."]),
)
def test_one_slip_of_the_pen_never_becomes_another_number(citations, at, slip):
    numbers = json.dumps(citations)
    at = min(at, len(numbers))
    slipped = numbers[:at] + slip + numbers[at:]
    result = ANSWER.check(f'{{"answer": "x", "citations": {slipped}, }}')
    if result.outcome == "repaired":
        said = "".join(str(one) for one in result.value["citations"])
        assert said == "".join(one for one in slipped if one.isdigit())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"answer": "x", "citations": [1, 0]}', "/citations/1: 0 is less than the minimum of 1"),
        ('{"answer": "", "citations": []}', "/answer: "),
        ('{"answer": " \\n", "citations": []}', "/answer: "),
        ('{"answer": "x"}', 'the whole answer: "citations" is a required property'),
        ('{"answer": "x", "citations": [], "more": 1}', "the whole answer: Additional properties"),
        ('{"answer": "x", "citations": ["1"]}', '/citations/0: "1" is not of type "integer"'),
        ('{"answer": "x", "citations": [NaN]}', "/citations/0: "),
        ('{"answer": "\\ud800", "citations": []}', "the whole answer: cannot be checked"),
        ('["x"]', "the whole answer: "),
        ("I do not know.", "the whole answer: not JSON"),
        ("", "the whole answer: not JSON"),
        ("[" * 100_000, "the whole answer: not JSON"),
        ("{" * 4_000 + "x" * 20_000, "the whole answer: not JSON"),
        ('["a" ' * 4_000, "the whole answer: not JSON"),
    ],
)
def test_an_invalid_answer_says_where_by_json_pointer(text, error):
    result = ANSWER.check(text)
    assert (result.value, result.outcome) == (None, "invalid")
    assert any(found.startswith(error) for found in result.errors)


def test_pointers_are_escaped_and_errors_are_bounded():
    schema = {"properties": {"a/b~c": {"type": "array", "items": {"type": "integer"}}}}
    result = compiled(schema).check(json.dumps({"a/b~c": ["x"] * 100}))
    assert result.errors[0].startswith("/a~1b~0c/0: ")
    assert len(result.errors) == 20


def test_text_passes_through():
    text = CompiledOutput.compile(Output(format="text"))
    assert text.check('{"not": checked').value == '{"not": checked'
    assert text.check("x").outcome == "valid"


@pytest.mark.parametrize(
    ("schema", "pointer", "message"),
    [
        ({"type": "objekt"}, "/type", "objekt"),
        ({"properties": {"a": {"minLength": -1}}}, "/properties/a/minLength", "-1"),
        ({"properties": {"a": {"$ref": "http://example.com/x.json"}}}, "/properties/a/$ref", "leaves the schema"),
        ({"$ref": "other.json"}, "/$ref", "leaves the schema"),
        ({"properties": {"default": {"$ref": "http://example.com/x"}}}, "", "example.com"),
        ({"$ref": "#/$defs/none"}, "", "/$defs/none"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "/$defs/a/$ref", "circle"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/$schema", "dialect"),
        ({"properties": {"a": {"pattern": "("}}}, "/properties/a/pattern", "regex"),
        ({"properties": {"a": {"pattern": "(?=a)"}}}, "/properties/a/pattern", "regex"),
    ],
)
def test_a_schema_that_may_not_be_used_says_where_and_why(schema, pointer, message):
    with pytest.raises(SchemaError) as raised:
        compiled(schema)
    assert raised.value.pointers == [pointer]
    assert message in raised.value.problems[0].message


def test_a_schema_may_refer_to_itself():
    tree = compiled({"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False})
    assert tree.check('{"next": {"next": {}}}').outcome == "valid"
    assert tree.check('{"next": {"nest": {}}}').errors[0].startswith("/next: ")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(values)
def test_valid_json_that_fits_comes_back_equal(value):
    assert compiled({}).check(json.dumps(value)).value == value


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.text('{}[]",:answercitations10 \\\n', max_size=80)))
def test_what_is_not_invalid_fits_the_schema(text):
    result = ANSWER.check(text)
    if result.outcome == "invalid":
        assert (result.value, bool(result.errors)) == (None, True)
    else:
        assert ANSWER.check(json.dumps(result.value)).outcome == "valid"
