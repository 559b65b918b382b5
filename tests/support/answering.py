"""A small app that answers: tasks in text and JSON, model routes with fallbacks, guards, and documents by hand.

``await setting(fake.base_url)`` gives a Setting whose router calls the fake model server; its index holds
:data:`PASSAGES` unless another is given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bundlectl.inference.client import HttpClient
from bundlectl.inference.presidio import PresidioProcesses
from bundlectl.model.bindings import Bindings
from bundlectl.model.bundle import Bundle, component_document, make_bundle
from bundlectl.model.canonical import canonical, digest
from bundlectl.model.components import (
    Access,
    AccessCase,
    Application,
    Detector,
    Evaluation,
    FileRef,
    Guard,
    Message,
    Model,
    Output,
    Profile,
    Prompt,
    Retrieval,
    Route,
    Routes,
    Rule,
    Task,
    When,
)
from bundlectl.model.contract import ReleaseRef, Request
from bundlectl.model.documents import Acl, Chunk
from bundlectl.model.receipt import Receipt
from bundlectl.retrieval.permission import Filter
from bundlectl.retrieval.search import Hit, SearchResult, Signals
from bundlectl.router.assemble import Compiled, OpenIndex, World, assemble
from bundlectl.router.router import Router

NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
DIGEST = "sha256:" + "0" * 64
SCHEMA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["answer", "citations"],
    "properties": {
        "answer": {"type": "string", "minLength": 3},
        "citations": {"type": "array", "items": {"type": "integer"}},
    },
}
_CEDAR_SCHEMA = b"""\
entity Caller { tenant: String, role: String };
entity Task { task: String, tenant: String, scopes: Set<String>, profile: String };
action "ask" appliesTo { principal: [Caller], resource: [Task] };
"""
_CEDAR = b"""\
@id("agents")
permit (principal, action == Action::"ask", resource) when { principal.role == "agent" };
@id("no-tickets-for-interns")
permit (principal, action == Action::"ask", resource)
when { principal.role == "intern" && !resource.scopes.contains("tickets") };
"""


def chunk(text: str, *, n: int = 1, tenant: str = "*", scope: str = "docs", roles: Sequence[str] = ("*",)) -> Chunk:
    return Chunk(
        id=f"guide-{n}.md#1.1",
        document=f"guide-{n}.md",
        version=DIGEST,
        title=f"Guide {n}",
        section=[f"Part {n}"],
        text=text,
        start=0,
        end=len(text),
        tokens=max(1, len(text) // 4),
        acl=Acl(tenant=tenant, scope=scope, roles=list(roles)),
    )


PASSAGES = [
    chunk("How do I promote a release: run promote with the environment and a reason.", n=1),
    chunk(
        "Rollback goes back. Who helps, where do I write about rollback: to jane.doe@example.com.",
        n=2,
    ),
]


@dataclass
class HandIndex:
    """Gives its chunks whatever is asked; ``lies``: without looking at the filter."""

    chunks: list[Chunk]
    lies: bool = False
    asked: list[tuple[str, Filter]] = field(default_factory=list)

    async def search(self, question: str, allowed: Filter, retrieval: Retrieval) -> SearchResult:
        self.asked.append((question, allowed))
        kept = [c for c in self.chunks if self.lies or allowed.permits(c.acl)]
        hits = tuple(Hit(c, c.digest(), 1.0 / rank, rank) for rank, c in enumerate(kept, start=1))
        removed = len(self.chunks) - len(kept)
        return SearchResult(hits, removed, 0, Signals(not hits, len(hits), removed, 0, 0.0, 0.0))


@dataclass
class Receipts:
    """Keeps receipts."""

    kept: list[Receipt] = field(default_factory=list)

    def write(self, receipt: Receipt) -> None:
        self.kept.append(receipt)

    @property
    def last(self) -> Receipt:
        return self.kept[-1]


PROMPT = Prompt(
    inputs=["question"],
    messages=[
        Message(role="system", content="Answer {{ task }} as {{ response_format }} from these passages."),
        Message(
            role="user",
            content="{% for p in passages %}[{{ p.n }}] {{ p.text }}\n{% endfor %}Question: {{ input.question }}",
        ),
    ],
)


def parts() -> dict[str, Any]:
    """Give the components as values; change them before :func:`bundle_of`."""
    files = {"access/schema.cedarschema": _CEDAR_SCHEMA, "access/policy.cedar": _CEDAR}
    refs = {path: FileRef(path=path, digest=digest(data)) for path, data in files.items()}
    case = {"task": "ask", "tenant": "acme", "profile": "plain"}
    redact = [Detector(entity="email", action="redact"), Detector(entity="credit_card", action="block")]
    prices: dict[str, Any] = {"provider": "openai"}
    return {
        "access": Access(
            policies=[refs["access/policy.cedar"]],
            schema_=refs["access/schema.cedarschema"],
            cases=[
                AccessCase(name="agent", role="agent", expect="allow", **case),
                AccessCase(name="visitor", role="visitor", expect="deny", **case),
            ],
        ),
        "application": Application(
            app="support",
            version="1.0.0",
            tasks={
                "ask": Task(
                    prompt="main", retrieval="guide", scopes=["docs", "tickets"], profiles=["plain", "guarded"]
                ),
                "ask_json": Task(prompt="main", retrieval="guide", scopes=["docs"], profiles=["plain", "guarded"]),
                "chat": Task(prompt="bare", profiles=["plain", "guarded", "restricted"]),
            },
        ),
        "embedding": None,
        "evaluation": Evaluation(),
        "guardrails": {
            "plain": Profile(),
            "guarded": Profile(
                input=Guard(max_chars=500, detectors=redact), output=Guard(max_chars=4000, detectors=redact)
            ),
            "restricted": Profile(),
        },
        "models": {
            "small": Model(model="gpt-4o-mini", parameters={"temperature": 0}, **prices),
            "own": Model(model="own-8b", **prices),
            "plain": Model(provider="extractive"),
        },
        "output": {
            "ask": Output(format="text"),
            "ask_json": Output(format="structured_json", schema_=SCHEMA, repair=1),
            "chat": Output(format="text"),
        },
        "prompts": {
            "main": PROMPT,
            "bare": Prompt(messages=[Message(role="user", content="{{ input.question }}")]),
        },
        "retrieval": {"guide": Retrieval(index="guide", snapshot=DIGEST, stale_after="1d")},
        "routes": Routes(
            routes={
                "fast": Route(
                    model="small", timeout="800ms", first_token="400ms", retries=1, fallback=["second", "last"]
                ),
                "second": Route(model="own", timeout="800ms", retries=0, fallback=[]),
                "last": Route(model="plain"),
                "restricted": Route(model="own", timeout="400ms", retries=0, fallback=[]),
                "quotes": Route(model="plain"),
                "batch": Route(model="small", mode="async", fallback=["last"]),
            },
            select=[
                Rule(when=When(profile="restricted"), use="restricted"),
                Rule(when=When(tenant="slow-corp"), use="batch"),
                Rule(when=When(tenant="quotes-only"), use="quotes"),
                Rule(use="fast"),
            ],
        ),
        "files": files,
    }


def bundle_of(values: dict[str, Any]) -> Bundle:
    values = dict(values)
    files = values.pop("files")
    return make_bundle({name: component_document(name, value) for name, value in values.items()}, files)


@dataclass
class Setting:
    router: Router
    receipts: Receipts
    compiled: Compiled
    index: HandIndex
    bundle: Bundle


@asynccontextmanager
async def setting(
    base_url: str = "http://127.0.0.1:9/v1",
    *,
    values: dict[str, Any] | None = None,
    index: HandIndex | None = None,
    bindings: dict[str, Any] | None = None,
    chance: Callable[[], float] = lambda: 0.0,
    checked: datetime | None = NOW,
    presidio: PresidioProcesses | None = None,
) -> Any:
    """Assemble the app against a model server; bindings are merged over its addresses."""
    session = HttpClient()
    bundle = bundle_of(values or parts())
    address = {"base_url": base_url}
    bound = Bindings.model_validate({"models": {"small": address, "own": address}, **(bindings or {})})
    index = index or HandIndex(list(PASSAGES))
    ref = ReleaseRef(
        app="support",
        environment="prod",
        epoch=1,
        serial=7,
        bundle=bundle.digest,
        bindings=digest(canonical(bound.form())),
    )
    held = index

    def open_index(*_: Any) -> Awaitable[OpenIndex]:
        async def opened() -> OpenIndex:
            return OpenIndex(searcher=held, snapshot=DIGEST, checked=checked)

        return opened()

    world = World(open_index=open_index, http=session, input_key=b"k" * 32, presidio=presidio, keeps_answers=True)
    async with session:
        compiled = await assemble(bundle, bound, ref, world)
        receipts = Receipts()
        router = Router(lambda: compiled, receipts, lambda: NOW, chance=chance)
        yield Setting(router, receipts, compiled, index, bundle)


def contract(task: str = "ask", question: str = "How do I promote a release?", **changes: Any) -> Request:
    values: dict[str, Any] = {
        "task": task,
        "tenant_id": "acme",
        "user_role": "agent",
        "data_scope": [] if task == "chat" else ["docs"],
        "policy_profile": "plain",
        "input": {"question": question},
    }
    return Request.model_validate({**values, **changes})
