"""The provider without a model: sentences, ranking, refusing, and what it writes into a schema."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.inference.extractive import HEADING, RANK_COST, ExtractiveProvider, rank_sentences, sentences
from bundlectl.inference.provider import ModelCall, Passage, Provider, ProviderError


def passage(n: int, text: str, title: str = "Manual", section: tuple[str, ...] = ("Manual",)) -> Passage:
    return Passage(n=n, title=title, section=section, text=text, document=f"{n}.md", chunk=f"{n}.md#0000.000")


PASSAGES = (
    passage(1, "Oil the pump every week. Wear gloves."),
    passage(2, "Replace the seal of a leaking valve. A valve has one seal.\nKeep the old seal."),
    passage(3, "Nothing of interest."),
)
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string"}, "citations": {"type": "array", "items": {"type": "integer"}}},
    "required": ["answer", "citations"],
}


def call(question: str, passages: tuple[Passage, ...] = PASSAGES, schema: dict[str, Any] | None = None) -> ModelCall:
    return ModelCall(model=None, messages=(), question=question, passages=passages, schema=schema)


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See e.g. Table 2. Mr. Smith agrees. J. Doe too.", ["See e.g. Table 2.", "Mr. Smith agrees.", "J. Doe too."]),
        ("Version 1.2.3 is out. Use it.", ["Version 1.2.3 is out.", "Use it."]),
        ("It says “stop.” Then go.", ["It says “stop.”", "Then go."]),
        ("wrapped\nover lines. Next", ["wrapped\nover lines.", "Next"]),
        ("para one\n\npara two", ["para one", "para two"]),
        (
            "- first item\n- second. Third\n  goes on\n1. fourth",
            ["first item", "second.", "Third\n  goes on", "fourth"],
        ),
        (
            "Run:\n\n```sh\nbundlectl ask\n\nbundlectl show\n```\nDone.",
            ["Run:", "bundlectl ask", "bundlectl show", "Done."],
        ),
        ("| a | b |\n| c | d |", ["a | b |", "c | d |"]),
        ("> quoted. Words", ["quoted.", "Words"]),
        ("", []),
        (" \n\n ", []),
        ("Set `x`. `y` follows.", ["Set `x`. `y` follows."]),  # a lower-case word starts none, in code or not
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end] for start, end in sentences(text)] == expected


@given(st.text(alphabet="aB .!?\n`-|>1~", max_size=80))
def test_sentences_are_verbatim_and_in_order(text: str) -> None:
    last = 0
    for start, end in sentences(text):
        assert last <= start < end <= len(text)
        assert text[start:end].strip() == text[start:end]
        last = end


# ---------------------------------------------------------------- ranking


def test_the_sentence_that_covers_most_comes_first() -> None:
    ranking = rank_sentences("How do I replace the seal of a valve?", PASSAGES)
    assert ranking.sentences[0].text == "Replace the seal of a leaking valve."
    assert ranking.sentences[0].coverage == pytest.approx(1.0)
    assert ranking.sentences[0].score == pytest.approx(1.0 - RANK_COST)
    assert ranking.support == pytest.approx(1.0 - RANK_COST)


def test_rank_decides_between_equals() -> None:
    same = tuple(passage(n, "Oil the pump.") for n in (1, 2, 3))
    assert [one.passage.n for one in rank_sentences("oil pump", same).sentences] == [1, 2, 3]


def test_a_word_that_nothing_holds_weighs_most() -> None:
    with_it = rank_sentences("oil pump week", PASSAGES).support
    without = rank_sentences("oil pump zebra", PASSAGES).support
    assert with_it == pytest.approx(1.0)
    assert without < 0.6


def test_headings_support_but_are_not_quoted() -> None:
    given_ = (passage(1, "Call the office.", section=("Leave", "Holidays in summer")),)
    ranking = rank_sentences("summer holidays", given_)
    assert ranking.support == pytest.approx(1.0)
    assert ranking.sentences[0].coverage == 0


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_shares_lie_between_nothing_and_all(question: str, texts: list[str]) -> None:
    given_ = tuple(passage(n, text) for n, text in enumerate(texts, start=1))
    ranking = rank_sentences(question, given_)
    assert all(0 <= one.coverage <= 1 + 1e-9 for one in ranking.sentences)
    assert ranking.support <= 1 + 1e-9


# ---------------------------------------------------------------- the provider


async def test_quotes_with_citations() -> None:
    provider: Provider = ExtractiveProvider()
    reply = await provider.generate(call("How do I replace the seal of a leaking valve?"))
    assert not reply.refused
    assert reply.text.splitlines() == [
        HEADING,
        "- Replace the seal of a leaking valve. [2]",
    ]
    assert reply.citations is not None
    assert next((c.n, c.document, c.chunk, c.section, c.quote) for c in reply.citations) == (
        2,
        "2.md",
        "2.md#0000.000",
        ["Manual"],
        "Replace the seal of a leaking valve.",
    )
    assert all(c.quote is not None and c.quote in PASSAGES[c.n - 1].text for c in reply.citations)
    assert reply.usage.input_tokens == reply.usage.output_tokens == 0


async def test_quotes_one_sentence_of_each_of_three_passages() -> None:
    texts = ["The valve leaks. A valve leaks oil.", "Leaks are mended.", "A leak.", "Valves leak at night."]
    reply = await ExtractiveProvider().generate(
        call("Why do valves leak?", tuple(passage(n, text) for n, text in enumerate(texts, start=1)))
    )
    assert reply.citations is not None
    assert len(reply.citations) == 3
    assert len({citation.n for citation in reply.citations}) == 3


async def test_streams_the_same_reply() -> None:
    provider = ExtractiveProvider()
    deltas = [delta async for delta in provider.stream(call("oil the pump"))]
    assert [delta.reply for delta in deltas] == [await provider.generate(call("oil the pump"))]
    assert deltas[0].text == deltas[0].reply.text if deltas[0].reply else False


@pytest.mark.parametrize("passages", [PASSAGES, ()])
async def test_refuses(passages: tuple[Passage, ...]) -> None:
    reply = await ExtractiveProvider().generate(call("Which graphics card suits a seventy billion model?", passages))
    assert reply.refused
    assert reply.citations == ()
    assert HEADING not in reply.text


async def test_threshold_is_a_parameter() -> None:
    question = call("oil zebra giraffe")
    assert (await ExtractiveProvider(min_score=0.9).generate(question)).refused
    assert not (await ExtractiveProvider(min_score=0.0).generate(question)).refused


async def test_nothing_to_quote_is_refused_whatever_the_threshold() -> None:
    assert (await ExtractiveProvider(min_score=-1).generate(call("zebra"))).refused
    assert (await ExtractiveProvider(min_score=-1).generate(call("what is it"))).refused


# ---------------------------------------------------------------- schemas


async def test_fills_answer_and_citations() -> None:
    reply = await ExtractiveProvider().generate(call("oil the pump every week", schema=SCHEMA))
    value = json.loads(reply.text)
    assert value["citations"] == [1]
    assert value["answer"].startswith(HEADING)
    assert reply.citations


async def test_refusal_fits_the_schema_too() -> None:
    reply = await ExtractiveProvider().generate(call("zebra", schema=SCHEMA))
    assert reply.refused
    assert json.loads(reply.text)["citations"] == []


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        (None, [1]),
        ({"type": "integer"}, [1]),
        ({"type": "string"}, ["[1]"]),
        ({"type": "object", "properties": {"n": {}}}, [{"n": 1}]),
        (
            {"type": "object", "properties": {"n": {}, "quote": {}}, "required": ["n"]},
            [{"n": 1, "quote": "Oil the pump every week."}],
        ),
    ],
)
async def test_forms_of_citations(items: dict[str, Any] | None, expected: list[Any]) -> None:
    array = {"type": "array"} if items is None else {"type": "array", "items": items}
    schema = {"properties": {"answer": {"type": "string"}, "citations": array}}
    reply = await ExtractiveProvider().generate(call("pump week", schema=schema, passages=PASSAGES[:1]))
    assert json.loads(reply.text)["citations"][:1] == expected


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"properties": {"answer": {"type": "string"}}},
        {"properties": {"answer": {"type": "number"}, "citations": {"type": "array"}}},
        {"properties": {"answer": {"type": "string"}, "citations": {"type": "object"}}},
        SCHEMA | {"required": ["answer", "citations", "confidence"]},
        {
            "properties": {
                "answer": {"type": "string"},
                "citations": {"type": "array", "items": {"type": "object", "required": ["url"]}},
            }
        },
        {"properties": {"answer": {"type": "string"}, "citations": {"type": "array", "items": {"type": "boolean"}}}},
    ],
)
@pytest.mark.parametrize("question", ["oil pump", "zebra"])
async def test_a_schema_it_cannot_fill(schema: dict[str, Any], question: str) -> None:
    with pytest.raises(ProviderError) as caught:
        await ExtractiveProvider().generate(call(question, schema=schema))
    assert caught.value.kind == "invalid"
