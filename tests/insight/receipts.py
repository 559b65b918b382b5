"""Receipts by hand: one answer by a model, and what can change about it, one thing each."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from bundlectl.model.canonical import digest
from bundlectl.model.components import COMPONENTS
from bundlectl.model.contract import Cost, Degraded, Refused, ReleaseRef
from bundlectl.model.documents import Snapshot
from bundlectl.model.receipt import Attempt, GuardRecord, Receipt, RetrievalRecord, UsedChunk, ValidationRecord


def sha(text: str) -> str:
    return digest(text.encode())


def used(document: str, rank: int, *, version: str = "v1", packed: bool = True) -> UsedChunk:
    return UsedChunk(
        chunk=f"{document}#1.1",
        digest=sha(f"{document} {version}"),
        document=document,
        version=sha(version),
        section=["Part"],
        score=1.0 / rank,
        rank=rank,
        packed=packed,
    )


def found(*chunks: UsedChunk, snapshot: str = "s1", **more: Any) -> RetrievalRecord:
    values = {
        "use": "docs",
        "index": "docs",
        "mode": "lexical",
        "rerank": "none",
        "candidates": len(chunks),
        "removed_by_permission": 0,
        "context_tokens": 100,
    } | more
    return RetrievalRecord(snapshot=sha(snapshot), chunks=list(chunks), **values)  # type: ignore[arg-type]


def call(model: str = "small", provider: str = "openai", outcome: str = "ok", **more: Any) -> Attempt:
    route = more.pop("route", "fast")
    return Attempt(route=route, model=model, provider=provider, outcome=outcome, seconds=0.1, **more)  # type: ignore[arg-type]


ONE, TWO = used("one.md", 1), used("two.md", 2)


def receipt(answer: str | None = "the answer", *, components: dict[str, str] | None = None, **changes: Any) -> Receipt:
    """Give the receipt of an answer; ``components`` holds the ones that differ, by name."""
    parts = {name: sha(name) for name in COMPONENTS} | {n: sha(v) for n, v in (components or {}).items()}
    values: dict[str, Any] = {
        "id": "r1",
        "time": datetime(2026, 11, 23, 12, tzinfo=UTC),
        "identity": "local",
        "task": "answer",
        "tenant": "acme",
        "role": "agent",
        "scopes": ["docs"],
        "latency_class": "interactive",
        "response_format": "structured_json",
        "profile": "pii_safe",
        "release": ReleaseRef(
            app="support", environment="prod", epoch=1, serial=1, bundle=sha("bundle"), bindings=sha("bindings")
        ),
        "components": parts,
        "code_version": "0.1.0",
        "input_digest": "hmac-sha256-k1:aa",
        "access": "allow",
        "access_policies": ["agents"],
        "route": "fast",
        "route_why": "the first rule",
        "attempts": [call()],
        "retrieval": found(ONE, TWO),
        "prompt_digest": sha("prompt"),
        "prompt_tokens": 200,
        "prompt_reached_model": True,
        "guards": [GuardRecord(side="input", action="pass"), GuardRecord(side="output", action="pass")],
        "validation": ValidationRecord(outcome="valid"),
        "cost": Cost(usd=0.0, price_book="b"),
        "stages": {},
        "answer_digest": sha(answer) if answer is not None else None,
    }
    return Receipt(**(values | changes))


def denied(**changes: Any) -> Receipt:
    """Give the receipt of a request that a policy denied: no later stage was reached."""
    values: dict[str, Any] = {
        "access": "deny",
        "access_policies": [],
        "refused": Refused(code="access_denied", reason="no"),
        "route": None,
        "route_why": "",
        "attempts": [],
        "retrieval": None,
        "prompt_digest": None,
        "prompt_tokens": None,
        "prompt_reached_model": None,
        "guards": [],
        "validation": None,
    }
    return receipt(None, **(values | changes))


def by_fallback(*failed: Attempt, **changes: Any) -> Receipt:
    """Give the receipt of a degraded answer by the extractive provider."""
    values: dict[str, Any] = {
        "route": "fallback",
        "attempts": [*failed, call("plain", "extractive", route="fallback")],
        "prompt_reached_model": False,
        "degraded": Degraded(reason="small could not answer"),
    }
    return receipt("quotes", **(values | changes))


def snapshot(**versions: str) -> Snapshot:
    """Give a snapshot of documents by name and version."""
    return Snapshot.model_validate(
        {
            "index": "docs",
            "chunking": {"tokens": 180, "overlap": 0},
            "embedding": {"provider": "wordllama", "model": "l2_supercat", "dimensions": 256},
            "documents": [
                {
                    "document": f"{name}.md",
                    "version": sha(version),
                    "title": name,
                    "acl": {"tenant": "*", "scope": "docs", "roles": ["*"]},
                    "sections": [],
                    "chunks": [sha(f"{name}.md {version}")],
                }
                for name, version in versions.items()
            ],
        }
    )
