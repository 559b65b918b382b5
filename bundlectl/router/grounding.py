"""The middle stages: find what may be drawn on, pack it, and render the prompt."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from pydantic_core import to_json

from bundlectl.inference.deadlines import Deadline
from bundlectl.model.documents import EVERYONE
from bundlectl.model.errors import BackendUnavailable
from bundlectl.model.receipt import RetrievalRecord, UsedChunk
from bundlectl.retrieval.permission import Filter
from bundlectl.router.run import Refusal, Run
from bundlectl.stages.injection import reads_like_orders
from bundlectl.stages.prompt import estimate_tokens

if TYPE_CHECKING:
    from bundlectl.model.components import Retrieval
    from bundlectl.router.assemble import LiveIndex

NOTHING_FOUND = "No document that may be drawn on supports an answer."
SEARCH_SECONDS: Final = 10.0
"""How long a search may take: tables may lie in a store that hangs, and who asks has a turn."""


class SearchTooSlow(BackendUnavailable):
    """The documents could not be searched in time."""

    code = "search_timeout"


def retrieve(run: Run) -> Awaitable[None] | None:
    """Search, where the task does; gives what to wait for."""
    task = run.task
    if task.retrieval is None or task.index is None:
        return None
    return _retrieve(run, task.retrieval, task.index)


async def _retrieve(run: Run, retrieval: Retrieval, searched: LiveIndex) -> None:
    """Search, with a filter made of what identity and access let through; then hold every hit against it again.

    The client's word never reaches the filter unchecked: tenant and role passed the identity stage, the scopes
    are the task's own and passed the policies.
    """
    task, request = run.task, run.request
    if EVERYONE in (request.tenant_id, request.user_role):
        raise Refusal("access_denied", "A request is one tenant's, in one role.")
    allowed = Filter(tenant=request.tenant_id, scopes=frozenset(request.data_scope), role=request.user_role)
    index = searched.current()
    try:
        with Deadline(asyncio.get_running_loop().time() + SEARCH_SECONDS):
            found = await index.searcher.search(run.question, allowed, retrieval)
    except TimeoutError as error:
        raise SearchTooSlow(
            f"The index {retrieval.index} was not searched within {SEARCH_SECONDS:g} seconds.",
            fix="Check the store that its tables lie in, or bind a folder on this machine.",
        ) from error
    permitted = tuple(hit for hit in found.hits if allowed.permits(hit.chunk.acl))
    staleness = None if index.checked is None else max(0.0, (run.time - index.checked).total_seconds())
    run.hits = permitted
    run.retrieval = RetrievalRecord(
        use=task.retrieval_use or "",
        index=retrieval.index,
        snapshot=index.snapshot,
        following=index.following,
        mode=retrieval.mode,
        rerank=retrieval.rerank,
        candidates=len(permitted),
        removed_by_permission=found.removed_by_permission + len(found.hits) - len(permitted),
        context_tokens=0,
        staleness=staleness,
        stale=None if task.stale_after is None else staleness is None or staleness > task.stale_after,
        chunks=[],
    )


def pack_passages(run: Run) -> None:
    """Pack the best hits into the budget. Without any, no model is asked: the answer is ``no_answer``."""
    if run.retrieval is None or run.task.retrieval is None:
        return
    from bundlectl.retrieval.packing import pack

    packed = pack(run.hits, context_tokens=run.task.retrieval.context_tokens, top=run.task.retrieval.top)
    run.passages = packed.passages
    run.retrieval = run.retrieval.model_copy(
        update={
            "context_tokens": packed.tokens,
            "suspicious": [p.chunk for p in packed.passages if reads_like_orders(p.text)] or None,
            "chunks": [
                UsedChunk(
                    chunk=hit.chunk.id,
                    digest=hit.digest,
                    document=hit.chunk.document,
                    version=hit.chunk.version,
                    section=hit.chunk.section,
                    score=hit.score,
                    rank=hit.rank,
                    reranked=hit.reranked,
                    packed=hit.chunk.id in packed.chunks,
                    start=hit.chunk.start,
                    end=hit.chunk.end,
                )
                for hit in run.hits
            ],
        }
    )
    if not packed.passages:
        raise Refusal("no_answer", NOTHING_FOUND)


def render_prompt(run: Run) -> None:
    """Render the messages; their digest says whether two requests were given the same words."""
    task = run.task
    messages = run.messages = task.prompt.render(run.input, run.passages, task.name, task.format)
    # Strings alone, under keys in order: these bytes are their RFC 8785 form, at a fraction of its price.
    data = to_json([{"content": message["content"], "role": message["role"]} for message in messages])
    run.prompt_digest = "sha256:" + hashlib.sha256(data).hexdigest()
    run.prompt_tokens = sum([estimate_tokens(message["content"]) for message in messages])
