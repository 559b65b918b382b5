"""What a hasty command line must not lose: an open gate, a receipt, the way back, the checks that were made."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.workspace import Workspace

ASK = ("ask", "hello:dev", "--tenant", "acme", "--role", "agent", "How do I reset my password?")


def test_a_look_at_some_cases_closes_no_gate(tmp_path: Path) -> None:
    made = Workspace.at(tmp_path)
    looked = made.warm("eval", ".", "--only", "visitor*", code=3)
    assert "nothing was attached" in looked.out
    made.warm("promote", ".", "--to", "staging", "--reason", "after a look")


def test_a_request_that_nothing_could_answer_keeps_its_receipt(tmp_path: Path) -> None:
    made = Workspace.at(tmp_path)
    made.warm("promote", ".", "--to", "dev", "--reason", "first")
    made.warm("bind", "hello:dev", "--disable-model", "quotes", "--reason", "off")
    failed = made.warm(*ASK, code=6)
    (kept,) = json.loads(made.warm("receipts", "list", "-o", "json").out)["receipts"]
    assert f"receipt {kept['id']}" in failed.err


def test_a_refused_promotion_prints_the_checks_that_passed_too(tmp_path: Path) -> None:
    made = Workspace.at(tmp_path, live=True)
    refused = made.warm("promote", ".", "--to", "prod", "--reason", "not confirmed", code=3)
    assert "pass         evaluation:hello" in refused.out
    assert "inconclusive confirm" in refused.out


def test_names_that_are_none_are_usage_not_defects(tmp_path: Path) -> None:
    made = Workspace.at(tmp_path, live=True)
    assert "tenant_id" in made.warm("ask", "hello:prod", "--tenant", "", "--role", "agent", "x", code=2).err
    assert "Its apps are hello" in made.warm("status", "nope", code=2).err
    assert "say why" in made.warm("promote", ".", "--to", "dev", "--reason", "  ", code=2).err
