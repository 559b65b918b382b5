"""Prices and credentials."""

from __future__ import annotations

from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from bundlectl.inference.credentials import resolve_credential
from bundlectl.inference.http import retry_after
from bundlectl.inference.prices import PRICE_BOOK, VARIABLE, Price, PriceBook, open_price_book
from bundlectl.model.contract import Usage
from bundlectl.model.errors import BundlectlError, NotFound, UsageError


def test_known_unknown_and_free() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    assert PRICE_BOOK.usd("openai", "gpt-4o-mini", usage) == pytest.approx(0.75)
    assert PRICE_BOOK.usd("openai", "qwen3-8b", usage) is None
    assert PRICE_BOOK.usd("extractive", None, usage) == 0


def test_one_unknown_price_makes_the_sum_unknown_unless_it_used_nothing() -> None:
    spent, nothing = Usage(input_tokens=1000, output_tokens=0), Usage()
    known = ("openai", "gpt-4o-mini", spent)
    assert PRICE_BOOK.cost([known, ("openai", "own", nothing)]).usd == pytest.approx(0.00015)
    assert PRICE_BOOK.cost([known, ("openai", "own", spent)]).usd is None
    assert PRICE_BOOK.cost([("extractive", None, spent)]).usd == 0
    assert PRICE_BOOK.cost([]).price_book == PRICE_BOOK.name


def test_what_came_from_the_cache_has_a_price_of_its_own() -> None:
    price = Price(input=1.0, output=5.0, cache_read=0.1, cache_write_5m=1.25, cache_write_1h=2.0)
    book = PriceBook("1", "USD", {("bedrock", "m"): price})
    usage = Usage(
        input_tokens=1000,
        output_tokens=100,
        cache_read_tokens=400,
        cache_write_5m_tokens=200,
        cache_write_1h_tokens=100,
    )
    expected = (300 * 1.0 + 400 * 0.1 + 200 * 1.25 + 100 * 2.0 + 100 * 5.0) / 1e6
    assert book.usd("bedrock", "m", usage) == pytest.approx(expected)


def test_an_unknown_cache_price_makes_the_cost_unknown_only_when_the_cache_was_used() -> None:
    nova = "amazon.nova-lite-v1:0"
    assert PRICE_BOOK.usd("bedrock", nova, Usage(input_tokens=1_000_000)) == pytest.approx(0.06)
    assert PRICE_BOOK.usd("bedrock", nova, Usage(input_tokens=10, cache_read_tokens=5)) is not None
    assert PRICE_BOOK.usd("bedrock", nova, Usage(input_tokens=10, cache_write_5m_tokens=5)) is None


def test_absent_cache_counts_leave_no_trace_in_what_is_written() -> None:
    assert Usage(input_tokens=1).form() == {"input_tokens": 1, "output_tokens": 0}


ENTRY = '{"provider": "openai", "model": "own", "input": 1, "output": 2.5}'


def book(tmp_path: Path, text: str) -> PriceBook:
    path = tmp_path / "prices.json"
    path.write_text(text)
    return open_price_book({VARIABLE: str(path)})


def test_a_book_of_ones_own(tmp_path: Path) -> None:
    assert open_price_book({}) is PRICE_BOOK
    own = book(tmp_path, f'{{"version": "contract-7", "currency": "USD", "prices": [{ENTRY}]}}')
    assert own.name == "USD-contract-7"
    assert own.usd("openai", "own", Usage(input_tokens=1_000_000)) == 1
    assert own.usd("openai", "gpt-4o", Usage(input_tokens=1)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        f'{{"version": "1", "currency": "USD", "prices": [{ENTRY}, {ENTRY}]}}',
        f'{{"version": "1", "currency": "EUR", "prices": [{ENTRY}]}}',
        f'{{"version": "1", "currency": "USD", "prices": [{ENTRY.replace("2.5", "-2.5")}]}}',
        f'{{"version": "1", "currency": "USD", "prices": [{ENTRY.replace("output", "outptu")}]}}',
    ],
)
def test_a_book_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        book(tmp_path, text)
    with pytest.raises(NotFound):
        open_price_book({VARIABLE: str(tmp_path / "missing.json")})


def test_credentials_from_environment_and_file(tmp_path: Path) -> None:
    assert resolve_credential("env:KEY", {"KEY": " v \n"}) == "v"
    held = tmp_path / "key"
    held.write_text("from-file\n")
    assert resolve_credential(f"file:{held}", {}) == "from-file"


@pytest.mark.parametrize("content", [None, "", "   \n", "two\nlines", "x" * 100_000])
def test_a_bad_credential_file_is_refused_without_its_text(tmp_path: Path, content: str | None) -> None:
    held = tmp_path / "key"
    if content is not None:
        held.write_text(content)
    with pytest.raises(BundlectlError) as caught:
        resolve_credential(f"file:{held}", {})
    assert "two" not in str(caught.value)


def test_a_credential_that_is_not_set() -> None:
    with pytest.raises(NotFound):
        resolve_credential("env:KEY", {})
    with pytest.raises(UsageError, match="no known scheme"):
        resolve_credential("vault:vllm", {})


def test_a_credential_of_two_lines_is_told_by_its_reference() -> None:
    assert resolve_credential("env:KEY", {"KEY": " abc\n"}) == "abc"
    with pytest.raises(UsageError, match="env:KEY holds more than one line"):
        resolve_credential("env:KEY", {"KEY": "abc\ndef"})


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "-3"}) == 0
    assert retry_after({"retry-after": "nonsense"}) is None
    assert retry_after({"retry-after": "nan"}) is None
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 +2999999999999"}) is None
    assert retry_after({}) is None
    later = retry_after({"retry-after": formatdate(time() + 30, usegmt=True)})
    assert later is not None and 25 < later <= 31
    assert retry_after({"retry-after": "1e9"}) == 3600
