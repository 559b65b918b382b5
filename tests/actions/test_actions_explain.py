"""explain finds the receipt that a kept answer was made by; and says so when it is gone."""

from __future__ import annotations

from bundlectl.actions.compare import explain
from bundlectl.actions.routing import receipts_folder
from bundlectl.insight.explain import Explanation
from bundlectl.insight.kept import KeptAnswer
from bundlectl.receipts.writer import ReceiptLog
from tests.insight.receipts import receipt, sha
from tests.insight.test_insight_explain import KEPT
from tests.support.workspace import APP, Workspace

MADE = receipt(id="made-0001")
HIT = receipt(**KEPT | {"id": "hit-00001", "cached_from": MADE.id})
ORPHAN = receipt(**KEPT | {"id": "orphan-01", "cached_from": "gone-00001"})
OTHER = receipt("b", id="other-001", components={"prompts": "p2"}, prompt_digest=sha("another prompt"))


def test_a_kept_answer_alone_and_beside_another(work: Workspace) -> None:
    with ReceiptLog(receipts_folder(work.context(), APP)) as log:
        for one in (MADE, HIT, ORPHAN, OTHER):
            log.write(one)
    alone = explain(work.context(), HIT.id)
    assert isinstance(alone, KeptAnswer) and (alone.receipt, alone.made_by) == (HIT, MADE)
    gone = explain(work.context(), ORPHAN.id)
    assert isinstance(gone, KeptAnswer) and gone.made_by is None and "gone-00001" in gone.note
    assert explain(work.context(), MADE.id) == MADE
    told = explain(work.context(), OTHER.id, HIT.id)
    assert isinstance(told, Explanation) and told.causes == ["prompt"]
    text = work.warm("explain", HIT.id).out
    assert text.index(HIT.id) < text.index("a kept answer") < text.index("passage") and "one.md" in text
    assert work.quick("explain", HIT.id)["made_by"]["id"] == MADE.id
    text = work.warm("explain", OTHER.id, ORPHAN.id).out
    assert "whose receipt is not here" in text and "retrieved context" in text
