"""wordllama from its own package: offline, unit length, the same every time."""

from __future__ import annotations

import math
import socket

import pytest

from bundlectl.inference.embeddings import WordLlamaEmbedder, open_embedder
from bundlectl.model.components import Embedding
from bundlectl.model.errors import UsageError

pytest.importorskip("wordllama", reason="the extra 'rag' is not installed")


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_loads_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("wordllama opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(WordLlamaEmbedder().embed(["words"])[0]) == 256


def test_vectors_have_length_one_and_mean_something(embedder: WordLlamaEmbedder) -> None:
    car, vehicle, soup = embedder.embed(["a red car", "a red automobile", "tomato soup recipe"])
    assert all(math.isclose(cosine(v, v), 1, rel_tol=1e-5) for v in (car, vehicle, soup))
    assert cosine(car, vehicle) > cosine(car, soup) + 0.3


def test_a_text_alone_or_among_others_has_one_vector(embedder: WordLlamaEmbedder) -> None:
    texts = ["short", "a much longer text about pumps, valves and the oil they need every week", "漢字"]
    together = embedder.embed(texts)
    for text, vector in zip(texts, together, strict=True):
        assert embedder.embed([text])[0] == pytest.approx(vector, abs=1e-6)


def test_empty_texts_have_no_direction(embedder: WordLlamaEmbedder) -> None:
    assert embedder.embed(["", "x"])[0] == [0.0] * 256
    assert embedder.embed([]) == []


def test_fewer_dimensions() -> None:
    small = WordLlamaEmbedder(dimensions=64)
    assert small.dimensions == len(small.embed(["words"])[0]) == 64


@pytest.mark.parametrize(("model", "dimensions"), [("l3_supercat", 256), ("l2_supercat", 512), ("l2_supercat", 0)])
def test_what_the_package_does_not_hold_is_refused(model: str, dimensions: int) -> None:
    with pytest.raises(UsageError):
        WordLlamaEmbedder(model, dimensions)


def test_open_by_settings() -> None:
    assert open_embedder(Embedding(provider="wordllama", model="l2_supercat", dimensions=128)).dimensions == 128
    with pytest.raises(UsageError, match="not in this version"):
        open_embedder(Embedding(provider="bedrock", model="amazon.titan-embed-text-v2:0", dimensions=256))
