"""Canonical JSON: the same bytes as the reference implementation of RFC 8785, whatever the value."""

from __future__ import annotations

import hashlib
import math
import struct
from typing import Any

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundlectl.model.canonical import canonical, canonical_array, digest, digest_of

keys = st.text(max_size=4) | st.sampled_from(["a", "A", "b", "\u20ac", "\U0001f600", "\ufb33", "\r", "1", "\x7f", '"'])
numbers = (
    st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.floats(-10, 10)
    | st.integers(-400, 400).map(lambda n: 10.0 ** (n / 13))
    | st.binary(min_size=8, max_size=8).map(lambda b: struct.unpack(">d", b)[0]).filter(math.isfinite)
)
texts = st.text(max_size=12) | st.characters(max_codepoint=0x9F)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=1500)
@given(values)
@example({"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27, -0.0, 1.0, 1e15, 1e16, 1e21]})
@example([1e-4, 9.999e-5, 1e-5, 1e-6, 9.99e-7, 123456789012345.6, 999999999999999.9, 2**53 - 1, -(2**53) + 1])
@example({"string": "\u20ac$\u000f\u000aA'\u0042\u0022\u005c\\\"/\u2028\u2029\u0000\u007f"})
@example({"\U0001f600": 1, "\ufb33": 2, "\u20ac": 3, "a": 4})
def test_the_bytes_are_those_of_the_reference(value: Any) -> None:
    assert canonical(value) == rfc8785.dumps(value)
    assert b"".join(canonical_array([value, value])) == canonical([value, value])


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 2**53, -(2**53), b"bytes", {1: 2}, {"a": [math.nan]}, "\ud800", object()]
)
def test_what_has_no_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError):
        canonical(value)


def test_an_array_in_pieces() -> None:
    assert b"".join(canonical_array([])) == b"[]" == canonical([])
    pieces = [b"ab", b"", b"c"]
    assert digest_of(pieces) == digest(b"abc") == "sha256:" + hashlib.sha256(b"abc").hexdigest()
