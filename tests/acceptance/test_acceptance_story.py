"""The whole story of an app on the real command line, outputs read as JSON.

Most are forked from a process that has bundlectl imported, and what searches runs in this one; the README's
tour starts each anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.workspace import APP, Workspace

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
CALLER = ("--tenant", "acme", "--role", "customer", "--scope", "help_center")
QUESTION = "Within how many days can I return an unused item?"


def test_story(tmp_path: Path) -> None:
    start = Workspace(tmp_path)
    made = start.json("init", APP, "--app", APP)
    work = Workspace(tmp_path / APP)
    assert DIGEST.fullmatch(made["registry"]["registry_id"])
    assert DIGEST.fullmatch(made["snapshot"])
    assert made["registry"]["registry_id"] == (work.home / "pin").read_text().strip()
    assert start.quick("init", APP, "--app", APP, code=2) is None, "nothing that is there is replaced"

    # ---- the first version, through every environment
    valid = work.quick("validate", ".")
    first = work.json("build", ".")
    assert first["bundle"] == valid["bundle"]
    assert first["reference"] == f"{APP}@{first['bundle']}"
    again = work.quick("build", ".")
    assert (again["bundle"], again["new"]) == (first["bundle"], False)

    refused = work.warm("promote", ".", "--to", "staging", "--reason", "too early", "-o", "json", code=3)
    assert refused.error["error"] == "gate_not_passed"
    assert "eval" in refused.error["fix"]
    [evaluated] = work.here("eval", ".")
    assert evaluated["result"]["verdict"] == "pass"
    assert DIGEST.fullmatch(evaluated["attestation"])

    for name in ("dev", "staging"):
        released = work.quick("promote", first["reference"], "--to", name, "--reason", "first")["released"]
        assert (released["serial"], released["bundle"]) == (1, first["bundle"])
    unconfirmed = work.warm("promote", f"{APP}:staging", "--to", "prod", "--reason", "first", "-o", "json", code=3)
    assert "--confirm prod" in unconfirmed.error["fix"]
    to_prod = ("promote", f"{APP}:staging", "--to", "prod", "--reason", "first", "--confirm", "prod")
    plan = work.quick(*to_prod, "--plan", "--plan-file", "plan.json")
    assert (plan.get("released"), plan["plan"]["verdict"]) == (None, "pass")
    assert work.quick(*to_prod, "--plan-file", "plan.json")["released"]["serial"] == 1
    stale = work.warm(*to_prod, "--plan-file", "plan.json", "-o", "json", code=5)
    assert "stale" in stale.error["message"]

    before = work.here("ask", f"{APP}:prod", *CALLER, QUESTION)
    assert "30 days" in before["answer"]["output"]["answer"]
    assert before["answer"]["release"]["bundle"] == first["bundle"]
    assert before["answer"]["citations"]

    # ---- the second version: another prompt, another document
    work.edit("prompts/answer.yaml", "and from nothing else", "and only from them")
    work.edit("documents/returns.md", "within 30 days of delivery", "within 45 days of delivery")
    work.edit("evals/hello.jsonl", '"30 days"', '"45 days"')
    indexed = work.here("index", "build", "indexes/help.yaml", "--pin", ".")
    assert indexed["changed"]
    assert indexed["snapshot"] != made["snapshot"]
    assert indexed["snapshot"] in (work.folder / "bundle.yaml").read_text()
    second = work.quick("build", ".")
    assert second["bundle"] != first["bundle"]
    [evaluated] = work.here("eval", ".")
    assert evaluated["result"]["verdict"] == "pass"
    work.quick("promote", ".", "--to", "staging", "--reason", "45 days")
    released = work.quick("promote", ".", "--to", "prod", "--reason", "45 days", "--confirm", "prod")["released"]
    assert (released["serial"], released["previous_bundle"]) == (2, first["bundle"])
    after = work.here("ask", f"{APP}:prod", *CALLER, QUESTION)
    assert "45 days" in after["answer"]["output"]["answer"]

    # ---- what changed, and did it reach the answer
    difference = work.quick("diff", f"{APP}:prod@1", f"{APP}:prod")
    assert {"prompts", "retrieval"} <= {part["component"] for part in difference["components"] if part["changed"]}
    assert [change["section"][-1] for change in difference["documents"]] == ["How long you have"]
    assert work.warm("diff", f"{APP}:prod@1", f"{APP}:prod", "--exit-code", code=7).out
    assert work.warm("diff", f"{APP}:prod", ".", "--exit-code", code=0).out
    receipts = [before["answer"]["receipt"], after["answer"]["receipt"]]
    listed = work.quick("receipts", "list")
    assert {item["id"] for item in listed["receipts"]} == set(receipts)
    explained = work.quick("explain", *receipts)
    rows = {row["question"]: row for row in explained["rows"]}
    assert len(rows) >= 8
    assert explained["same_answer"] == "no"
    assert (rows["retrieved context"]["changed"], rows["retrieved context"]["reached"]) == ("yes", "yes")
    assert (rows["model"]["changed"], rows["guardrail policy"]["changed"]) == ("no", "no")

    # ---- back
    back = work.json("rollback", f"{APP}:prod", "--reason", "45 was wrong", "--confirm", "prod")
    assert (back["released"]["serial"], back["released"]["bundle"], back["returned_to"]) == (3, first["bundle"], 1)
    history = work.quick("history", f"{APP}:prod", "--verify")
    assert [(e["serial"], e["action"], e["verified"]) for e in history["entries"]] == [
        (3, "rollback", True),
        (2, "promotion", True),
        (1, "promotion", True),
    ]
    live = {one["environment"]: one for one in work.quick("status")["environments"]}
    assert {name: one["bundle"] for name, one in live.items()} == {
        "dev": first["bundle"],
        "staging": second["bundle"],
        "prod": first["bundle"],
    }
    assert live["prod"]["rollback_target"] == second["bundle"]

    # ---- carried to another registry: the digest stays, and strangers' signatures do not count there
    exported = work.quick("export", second["reference"], "oci:../layout")
    assert exported["attestations"] >= 2
    assert work.quick("verify", "oci:../layout")["bundle"] == second["bundle"]
    start.quick("keyring", "init", "--app", APP, "--registry", "other/registry")
    imported = start.quick("import", "oci:layout", "--registry", "other/registry")
    assert imported["reference"] == second["reference"]
    there = start.quick("verify", second["reference"], "--registry", "other/registry")
    assert there["bundle"] == second["bundle"]
    assert there["attestations"] == []
    assert len(there["set_aside"]) == exported["attestations"]
    start.warm("verify", second["reference"], "--for", "staging", "--registry", "other/registry", code=4)
