"""Whatever bytes or values a server gives: a reply, or an error in the one vocabulary."""

from __future__ import annotations

import itertools
import json
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundlectl.inference.aws import event_of, read_frames
from bundlectl.inference.bedrock_settings import ConverseParameters
from bundlectl.inference.chat import ServerSentEvents
from bundlectl.inference.connection import Response
from bundlectl.inference.converse import Conversation, ConverseStream
from bundlectl.inference.provider import ModelCall, ModelReply, ProviderError
from tests.support.fake_bedrock import Answer, converse_events, converse_value, event

CALL = ModelCall(model="m", messages=[{"role": "user", "content": "?"}], question="?")
TALK = Conversation(CALL, ConverseParameters(), None, "m", "model m")


class Body:
    """A response of which only the body is read, in pieces."""

    def __init__(self, data: bytes, cuts: list[int]) -> None:
        places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        self.pieces = [data[a:b] for a, b in itertools.pairwise(places)]

    async def parts(self) -> Any:
        for part in self.pieces:
            yield part


async def read(data: bytes, cuts: list[int]) -> ModelReply | None:
    """Give the reply of a stream; None when it ended early."""
    gathered = ConverseStream(TALK)
    async for frame in read_frames(cast(Response, Body(data, cuts)), "model m"):
        gathered.take(event_of(frame, "model m"))
    return gathered.reply() if gathered.ended else None


WHOLE = b"".join(converse_events(Answer("One \u00fc two [1].")))
CUTS = st.lists(st.integers(0, 5000), max_size=8)


@given(CUTS)
async def test_the_pieces_of_a_stream_do_not_matter(cuts: list[int]) -> None:
    reply = await read(WHOLE, cuts)
    assert reply is not None and reply.text == "One \u00fc two [1]."


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255), CUTS)
@settings(max_examples=300)
async def test_no_changed_byte_goes_unseen(at: int, by: int, cuts: list[int]) -> None:
    changed = WHOLE[:at] + bytes([WHOLE[at] ^ by]) + WHOLE[at + 1 :]
    with pytest.raises(ProviderError) as caught:
        assert await read(changed, cuts) is None
        raise ProviderError("broken_stream", "it ended early")
    assert caught.value.kind in ("invalid", "broken_stream")


@given(st.integers(0, len(WHOLE) - 1), CUTS)
async def test_no_stream_that_was_cut_is_whole(at: int, cuts: list[int]) -> None:
    try:
        assert await read(WHOLE[:at], cuts) is None
    except ProviderError as error:
        assert error.kind == "broken_stream"


@given(st.binary(max_size=400), CUTS)
async def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    try:
        assert await read(data, cuts) is None
    except ProviderError as error:
        assert error.kind in ("invalid", "broken_stream")


VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
REPLY = converse_value(
    Answer(also={"serviceTier": {"type": "flex"}, "trace": {"promptRouter": {"invokedModelId": "m"}}})
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, child in inner for deeper in places(child, (*path, key)))]


@given(st.sampled_from(places(REPLY)), VALUES)
@settings(max_examples=300)
def test_any_value_in_any_place_of_a_reply(path: tuple[Any, ...], value: Any) -> None:
    top = {"top": json.loads(json.dumps(REPLY))}
    parent: Any = top
    for part in ("top", *path)[:-1]:
        parent = parent[part]
    parent[("top", *path)[-1]] = value
    try:
        assert isinstance(TALK.reply(top["top"]), ModelReply)
    except ProviderError as error:
        assert error.kind in ("invalid", "refused")


@given(st.sampled_from(["contentBlockDelta", "messageStop", "metadata", "other"]), VALUES | st.binary(max_size=20))
@settings(max_examples=300)
async def test_any_payload_of_any_event(kind: str, value: Any) -> None:
    try:
        await read(event(kind, value), [])
    except ProviderError as error:
        assert error.kind in ("invalid", "refused")


@given(
    st.lists(st.text(alphabet="ab\u00fc", min_size=1, max_size=5), max_size=5), CUTS, st.sampled_from(["\n", "\r\n"])
)
def test_the_pieces_of_server_sent_events_do_not_matter(texts: list[str], cuts: list[int], end: str) -> None:
    data = "".join(f": comment{end}event: x{end}data: {text}{end}{end}" for text in texts).encode()
    events = ServerSentEvents("model m")
    found = [one for part in Body(data, cuts).pieces for one in events.feed(part)]
    assert found == [text.encode() for text in texts]
