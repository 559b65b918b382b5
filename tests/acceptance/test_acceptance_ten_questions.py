"""Ten questions about bundlectl, frozen before any tuning: at least eight are answered from the right section."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from datetime import UTC, datetime
from pathlib import Path

from bundlectl.actions.ask import ask
from bundlectl.actions.build import build
from bundlectl.actions.context import Context
from bundlectl.actions.index import index_build
from bundlectl.actions.keyring import keyring_init
from bundlectl.actions.promote import promote
from bundlectl.resources import data_root

RIGHT_AT_LEAST = 8


def test_eight_of_ten_questions_are_answered_from_the_right_section(tmp_path: Path) -> None:
    root = data_root()
    for name in ("bundles/support", "evals", "docs"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("decisions"))
    shutil.copyfile(root / "README.md", tmp_path / "README.md")
    ctx = Context(
        registry_url=str(tmp_path / ".bundlectl" / "registry"),
        clock=lambda: datetime.now(UTC),
        new_id=lambda: secrets.token_hex(8),
        environ=dict(os.environ),
    )
    keyring_init(ctx, "support", suites=["support"])
    source = tmp_path / "bundles" / "support"
    index_build(ctx, source / "indexes" / "support_docs.yaml", pin=source)
    built = build(ctx, source)
    bindings = source / "environments" / "prod.yaml"
    promote(ctx, built.reference, environment="dev", reason="ten questions", bindings_file=bindings)
    right, wrong = 0, []
    lines = (root / "evals" / "ten-questions.jsonl").read_text(encoding="utf-8").splitlines()
    for case in map(json.loads, lines):
        who = {"tenant": case["tenant"], "role": case["role"], "scopes": case["scopes"]}
        asked = ask(ctx, "support:dev", case["input"]["question"], **who)
        expected = {(item["document"], tuple(item["section"])) for item in case["expected"]["documents"]}
        cited = {(citation.document, tuple(citation.section)) for citation in asked.answer.citations}
        if expected & cited:
            right += 1
        else:
            wrong.append(case["id"])
    assert len(lines) == 10
    assert right >= RIGHT_AT_LEAST, f"{right} of 10; not: {wrong}"
