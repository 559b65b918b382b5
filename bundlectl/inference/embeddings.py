"""Texts to vectors. Index and question must use the same embedder: vectors of two models do not compare."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from bundlectl.model.components import Embedding
from bundlectl.model.errors import MissingExtra, UsageError


class Embedder(Protocol):
    """Makes vectors. Blocking; callers on an event loop use a thread. Safe across threads."""

    @property
    def dimensions(self) -> int:
        """Length of every vector."""
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Give one vector per text: of length 1, or all zeros for a text without a known token."""
        ...


WORDLLAMA_MODELS = {"l2_supercat": 256}
"""Models that come in wordllama's own package, with their dimensions; no other is loaded, so nothing is fetched."""


class WordLlamaEmbedder:
    """wordllama: averaged token vectors, from the files in its own package, without any download.

    ``dimensions`` below the model's own keep the first ones (the model was trained for that). The files are
    loaded at the first text, so that a lexical search never pays for them.

    Raises:
        UsageError: the model does not come with the package, or has no such dimensions.
        MissingExtra: wordllama is not installed.
    """

    def __init__(self, model: str = "l2_supercat", dimensions: int = 256) -> None:
        full = WORDLLAMA_MODELS.get(model)
        if full is None:
            raise UsageError(
                f"wordllama's package holds no model '{model}'.", fix=f"Use one of: {', '.join(WORDLLAMA_MODELS)}."
            )
        if not 1 <= dimensions <= full:
            raise UsageError(
                f"{model} has {full} dimensions, and {dimensions} were asked for.", fix=f"dimensions: {full}"
            )
        self._dimensions = dimensions
        self._name, self._full = model, full
        self._model: Any = None
        self._loading = threading.Lock()

    @property
    def dimensions(self) -> int:
        """Length of every vector."""
        return self._dimensions

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Give one vector per text, of length 1; a text without a known token has no direction: all zeros."""
        import numpy as np

        if not texts:
            return []
        with self._loading:
            if self._model is None:
                self._model = _load(self._name, self._full)
        raw = np.asarray(self._model.embed(list(texts), norm=False), dtype=np.float64)[:, : self._dimensions]
        lengths = np.sqrt((raw * raw).sum(axis=1, keepdims=True))
        unit = np.divide(raw, lengths, out=np.zeros_like(raw), where=lengths > 0)
        return unit.astype(np.float32).tolist()  # type: ignore[no-any-return]


def open_embedder(settings: Embedding) -> Embedder:
    """Make the embedder that a bundle or an index names.

    Raises:
        UsageError: the provider is not in this version, or has no such model.
        MissingExtra: its library is not installed.
    """
    if settings.provider == "wordllama":
        return WordLlamaEmbedder(settings.model, settings.dimensions)
    raise UsageError(
        f"Embeddings of provider {settings.provider} are not in this version.", fix="Use provider: wordllama."
    )


def _load(model: str, dimensions: int) -> Any:
    try:
        import wordllama
    except ModuleNotFoundError as error:
        raise MissingExtra("The wordllama embedding", "rag") from error
    # the package's own folder is the cache, and downloads are off: loading is the same with and without a network
    folder = Path(wordllama.__file__).parent
    return wordllama.WordLlama.load(model, cache_dir=folder, dim=dimensions, disable_download=True)
