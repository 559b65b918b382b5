"""Handing in a batch: what it needs, and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

from bundlectl.actions.batch import batch_submit
from bundlectl.actions.batching import BatchPlace
from tests.acceptance.serving import REQUEST
from tests.actions.test_actions_promote import with_own_model
from tests.support.workspace import APP, Workspace


def test_who_hands_in_needs_no_credential_of_a_model(work: Workspace, tmp_path: Path) -> None:
    with_own_model(work)
    own = '{own: {base_url: "http://127.0.0.1:1/v1", credential: "env:NOT_SET_HERE"}}'
    (work.folder / "environments" / "dev.yaml").write_text(f"apiVersion: bundlectl/v1\nkind: Bindings\nmodels: {own}\n")
    work.release("dev")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": "one", **REQUEST}) + "\n")
    assert batch_submit(work.context(), f"{APP}:dev", str(file), BatchPlace()).rows == 1
