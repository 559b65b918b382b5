"""What the request path writes by short cuts is what the long way writes."""

from __future__ import annotations

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlectl.model.canonical import MAX_DEPTH, parse_json
from bundlectl.model.components import Detector, Guard
from bundlectl.model.contract import Usage
from bundlectl.model.errors import VerificationFailed
from bundlectl.router.answering import answer_digest
from bundlectl.router.contract import input_digest
from bundlectl.stages.guards import CompiledGuard

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_LEAVES = TEXT | st.booleans() | st.integers(-(10**6), 10**6) | st.none()
VALUES = st.recursive(_LEAVES, lambda v: st.lists(v, max_size=3))


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.binary(min_size=16, max_size=80))
def test_digests_of_inputs_are_hmacs_of_sorted_json(value: dict[str, object], key: bytes) -> None:
    data = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    name = hmac.digest(key, b"bundlectl receipt key", "sha256").hex()[:8]
    assert input_digest(value, key) == f"hmac-sha256-{name}:{hmac.digest(key, data, 'sha256').hex()}"


@given(VALUES)
def test_digests_of_answers_are_of_sorted_json(value: object) -> None:
    data = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    assert answer_digest(value) == "sha256:" + hashlib.sha256(data).hexdigest()


def test_a_field_that_is_missing_is_not_made_up() -> None:
    with pytest.raises(TypeError, match="5 fields, 1 were given"):
        Usage.unchecked({"input_tokens": 1})


@pytest.mark.parametrize("deep", [MAX_DEPTH, MAX_DEPTH + 1])
def test_depth_is_bounded_where_brackets_are_many_and_where_they_are_few(deep: int) -> None:
    nested = b"[" * deep + b"]" * deep
    flat = b"[" + b",".join([b"{}"] * 200) + b"]"
    assert parse_json(flat, what="It") == [{}] * 200
    if deep > MAX_DEPTH:
        with pytest.raises(VerificationFailed, match="deeper than 64"):
            parse_json(nested, what="It")
    else:
        parse_json(nested, what="It")


def test_keys_that_were_clean_once_still_count_and_dirty_ones_still_block() -> None:
    guard = CompiledGuard.compile(Guard(max_chars=20, detectors=[Detector(entity="email", action="redact")]))
    for _ in range(2):
        assert guard.apply_json({"question": "short"}).action == "pass"
        assert guard.apply_json({"jane@example.com": "short"}).action == "block"
        assert guard.apply_json({"question": "x" * 13}).action == "block"  # eight of the key and thirteen are 21
        assert guard.apply_json({"question": "j@example.com"}).action == "block"
        assert guard.apply_json({"q": "j@example.com"}).value == {"q": "[EMAIL]"}
