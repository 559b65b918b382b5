"""The router over a real index: documents of two tenants, cut, written, searched and answered from."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bundlectl.model.bindings import Bindings
from bundlectl.model.components import Embedding, Retrieval
from bundlectl.model.contract import ReleaseRef
from bundlectl.model.documents import Chunking, IndexSource, IndexSourceEntry
from bundlectl.retrieval.documents import read_documents
from bundlectl.retrieval.index import build_index, open_index, snapshot_digest
from bundlectl.router import grounding
from bundlectl.router.assemble import OpenIndex, World, assemble
from bundlectl.router.identity import LOCAL
from bundlectl.router.router import Router
from tests.support.answering import DIGEST, NOW, HandIndex, Receipts, bundle_of, contract, parts, setting

FILES = {
    "docs/promote.md": "# Promote\n\nTo promote a release to production, run promote with a reason.\n",
    "docs/rollback.md": "# Rollback\n\nA rollback returns to the release that was live before.\n",
    "zenith/secret.md": "# Zenith\n\nZenith must promote its release to production on Sundays only.\n",
}


class Letters:
    """Embeds by the letters of a text: real vectors without a model."""

    dimensions = 26

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[1.0 + text.lower().count(chr(97 + n)) for n in range(26)] for text in texts]


@pytest.mark.parametrize(("mode", "rerank"), [("lexical", "none"), ("hybrid", "coverage")])
async def test_answers_come_from_what_the_tenant_may_see(tmp_path: Path, mode: Any, rerank: Any) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    embedding = Embedding(provider="wordllama", model="letters", dimensions=26)
    source = IndexSource(
        apiVersion="bundlectl/v1",
        kind="IndexSource",
        index="guide",
        sources=[
            IndexSourceEntry(scope="docs", include=["docs/*.md"], tenant="*", roles=["*"]),
            IndexSourceEntry(scope="docs", include=["zenith/*.md"], tenant="zenith", roles=["*"]),
        ],
        embedding=embedding,
    )
    documents = read_documents(source, tmp_path / "guide.yaml")
    snapshot = build_index(
        "guide",
        documents,
        chunking=Chunking(),
        embedding=embedding,
        embedder=Letters(),
        folder=tmp_path / "index",
    )
    pinned = snapshot_digest(snapshot)
    values = parts()
    values["embedding"] = embedding
    values["retrieval"] = {"guide": Retrieval(index="guide", snapshot=pinned, mode=mode, rerank=rerank)}
    bundle = bundle_of(values)
    ref = ReleaseRef(app="support", environment="-", epoch=0, serial=0, bundle=bundle.digest, bindings=DIGEST)

    async def opened(app: str, retrieval: Retrieval, address: str | None, embedder: Any) -> OpenIndex:
        return OpenIndex(open_index(tmp_path / "index", snapshot, embedder), retrieval.snapshot, checked=NOW)

    world = World(open_index=opened, make_embedder=lambda _: Letters())
    bindings = Bindings(disabled_models=["small", "own"])
    compiled = await assemble(bundle, bindings, ref, world)
    receipts = Receipts()
    router = Router(lambda: compiled, receipts, lambda: NOW)
    question = "promote release to production"
    ours = await router.handle(contract(question=question), LOCAL)
    theirs = await router.handle(contract(question=question, tenant_id="zenith"), LOCAL)
    assert ours.answer is not None and theirs.answer is not None
    assert ours.answer.citations[0].document == "docs/promote.md" and ours.answer.degraded is not None
    assert {c.document for c in theirs.answer.citations} >= {"zenith/secret.md"}
    assert "Zenith" not in ours.answer.model_dump_json() + ours.receipt.model_dump_json()
    record = ours.receipt.retrieval
    assert record is not None and record.snapshot == pinned and record.context_tokens > 0
    assert (record.chunks[0].reranked is None) == (rerank == "none")


async def test_a_search_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hung(HandIndex):
        async def search(self, *_: Any) -> Any:
            await asyncio.sleep(30)

    monkeypatch.setattr(grounding, "SEARCH_SECONDS", 0.1)
    async with setting(index=Hung([])) as s:
        outcome = await s.router.handle(contract(), LOCAL)
        assert (outcome.status, outcome.receipt.error) == (503, {"error": "search_timeout", "stage": "retrieval"})
