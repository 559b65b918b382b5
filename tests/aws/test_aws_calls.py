"""How many calls each verb makes to AWS, found by name, under a gate that asks for everything: more are noticed here.

``make bench`` measures their depth and time as well, at 100,000 releases.
"""

from __future__ import annotations

import pytest

from tests.benchmarks import aws_calls

AT_MOST = {
    "promote, first": 14,
    "promote, known": 13,
    "promote, by environment": 13,
    "rollback, first": 9,
    "rollback, known": 8,
    "status, known": 11,
    "cold resolve": 5,
    "unchanged poll": 1,
}


@pytest.mark.parametrize("releases", [10, 2_500])
def test_calls(releases: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aws_calls, "LATE", 0.0)
    counted = aws_calls._counts(releases)
    more = {name: found for name, found in counted.items() if found[0] > AT_MOST[name]}
    assert not more
    assert counted.keys() == AT_MOST.keys()
