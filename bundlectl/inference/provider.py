"""What a model provider is: one call in, one reply or a stream of pieces out, and errors in one vocabulary.

Providers make one attempt and never retry: retries, fallback and circuit breaking are one layer, in the router.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal, Protocol, runtime_checkable

from bundlectl.model.components import Model
from bundlectl.model.contract import Citation, Usage
from bundlectl.model.errors import BackendUnavailable

NO_USAGE: Final = Usage()

ErrorKind = Literal["throttled", "timeout", "unavailable", "refused", "invalid", "broken_stream"]


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document as it was packed into the prompt. ``n`` counts from 1 and is how answers cite it.

    ``updated`` is the document's own date where it has one; ``section`` is the heading path. ``start`` and ``end``:
    where ``text`` stands in the document of that ``version``, in characters; absent where that is not known.
    """

    n: int
    title: str
    section: tuple[str, ...]
    text: str
    document: str
    chunk: str
    updated: str | None = None
    version: str | None = None
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One attempt at one model.

    ``model`` is the provider's own id (``None`` for providers without a model). ``schema`` is set when the
    reply's text must be one JSON object of that JSON Schema; a provider without a model fits its answer into it
    (see :mod:`bundlectl.inference.extractive`). ``question`` and ``passages`` are what the messages were
    rendered from, for providers that read no prompt. ``total`` and ``first_token`` are seconds from the call,
    ``between_tokens`` from one text of a stream to the next.
    """

    model: str | None
    messages: Sequence[Mapping[str, str]]
    question: str
    passages: tuple[Passage, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    schema: Mapping[str, Any] | None = None
    total: float = 30.0
    first_token: float | None = None
    between_tokens: float | None = None

    @property
    def must_stream(self) -> bool:
        """Whether it has a deadline that only a stream can keep."""
        return self.first_token is not None or self.between_tokens is not None


@dataclass(frozen=True, slots=True)
class ModelReply:
    """A whole reply.

    ``provider_model`` is the model id as the provider returned it. ``citations`` are given by providers that
    know what they quoted; ``None`` means that the citations are in the text (``[n]``, or a ``citations`` array in
    JSON). ``refused``: the provider found no answer in the passages, and ``text`` says so to the reader.
    ``priced_as`` is the name that the price book has for what was called, where it is not the bundle's model;
    ``provider_seconds`` is how long the provider says it worked. ``cut``: the model was stopped at its longest answer.
    """

    text: str
    usage: Usage = NO_USAGE
    provider_model: str | None = None
    citations: tuple[Citation, ...] | None = None
    refused: bool = False
    priced_as: str | None = None
    provider_seconds: float | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed reply. The last one carries ``reply``, whole; a stream that ends without it broke."""

    text: str
    reply: ModelReply | None = None


class ProviderError(BackendUnavailable):
    """One attempt failed.

    ``kind`` is the normalised cause: ``throttled`` (429), ``timeout`` (a deadline passed), ``unavailable`` (no
    connection, 5xx), ``refused`` (the provider would not answer: its own filter, 4xx), ``invalid`` (a reply that is
    not in the wire format), ``broken_stream`` (ended without its end marker). ``retry_after`` in seconds, where
    the provider named one. ``reply``: one that came whole all the same, whose usage counts.
    """

    code: ClassVar[str] = "model_unavailable"

    def __init__(
        self,
        kind: ErrorKind,
        what: str,
        *,
        why: str = "",
        retry_after: float | None = None,
        reply: ModelReply | None = None,
    ) -> None:
        super().__init__(what, why=why)
        self.kind: ErrorKind = kind
        self.retry_after = retry_after
        self.reply = reply


def worded(reply: ModelReply, what: str) -> ModelReply:
    """Give a reply that says something.

    Raises:
        ProviderError: ``refused``: there is no word in it, as of a model that spent all its tokens on thinking, or
            called a tool. Asked again it would say as little, and of its health that says nothing: a caller may have
            wished for it.
    """
    if reply.text.strip():
        return reply
    why = "no text within max_tokens" if reply.cut else "no text"
    raise ProviderError("refused", f"{what} answered without a word.", why=why, reply=reply)


@runtime_checkable
class Priced(Protocol):
    """A provider whose price depends on where and how a model is asked."""

    def priced_as(self, model: Model) -> str:
        """Give the name that the price book has for asking a model; replies may name another that answered."""
        ...


class Provider(Protocol):
    """A way to reach models. One instance serves concurrent calls for as long as a bundle is live."""

    @property
    def name(self) -> str:
        """The provider as bundles name it, e.g. ``openai``."""
        ...

    @property
    def reads_prompt(self) -> bool:
        """Whether the rendered messages reach a model; False for ``extractive``, which reads the passages."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether equal calls always give equal replies."""
        ...

    async def generate(self, call: ModelCall) -> ModelReply:
        """Make one attempt.

        Raises:
            ProviderError: it failed.
        """
        ...

    def stream(self, call: ModelCall) -> AsyncGenerator[Delta, None]:
        """Make one attempt, giving the text as it comes; the last delta carries the whole reply.

        A generator, so that a caller who stops early can close it and with it the connection.

        Raises:
            ProviderError: it failed, before or in the stream.
        """
        ...
