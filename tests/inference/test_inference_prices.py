"""Prices and credentials."""

from __future__ import annotations

from email.utils import formatdate
from pathlib import Path
from time import time

import pytest

from bundlectl.inference.credentials import resolve_credential
from bundlectl.inference.http import retry_after
from bundlectl.inference.prices import PRICE_BOOK
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


def test_what_this_version_cannot_fetch() -> None:
    with pytest.raises(NotFound):
        resolve_credential("env:KEY", {})
    for reference in ("aws-sm:vllm", "ssm:/vllm"):
        with pytest.raises(UsageError, match="not in this version"):
            resolve_credential(reference, {})


def test_retry_after_in_both_forms() -> None:
    assert retry_after({"Retry-After": "3"}) == 3
    assert retry_after({"Retry-After": "-3"}) == 0
    assert retry_after({"Retry-After": "nonsense"}) is None
    assert retry_after({"Retry-After": "nan"}) is None
    assert retry_after({}) is None
    later = retry_after({"Retry-After": formatdate(time() + 30, usegmt=True)})
    assert later is not None and 25 < later <= 31
    assert retry_after({"Retry-After": "1e9"}) == 3600
