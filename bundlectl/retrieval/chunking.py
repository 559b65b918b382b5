"""Sections to chunks: each a piece of one section, with its offsets in the document's text."""

from __future__ import annotations

import re
from typing import Any

from bundlectl.model.documents import Chunk, Chunking
from bundlectl.model.errors import MissingExtra
from bundlectl.retrieval.documents import Document

_TOKEN = re.compile(r"[A-Za-z]{1,6}|[0-9]{1,3}|[^\sA-Za-z0-9]")


def count_tokens(text: str) -> int:
    """Estimate a text's tokens without any model's tokenizer, the same on every machine.

    Each run of up to six Latin letters, each run of up to three digits, and every other character that is no
    space counts one. Against a 32,000-entry byte-pair vocabulary that was within a twentieth on this project's
    documentation, .93 on financial reports and .84 on biomedical articles.
    """
    return len(_TOKEN.findall(text))


def cut(document: Document, chunking: Chunking) -> list[Chunk]:
    """Cut a document's sections into chunks; ``document.text[chunk.start:chunk.end] == chunk.text``.

    A chunk's id is ``<key>#<section>.<piece>``, both counted in the document, so ids sort in reading order.
    """
    try:
        from semchunk import chunk as split  # type: ignore[attr-defined]
    except ModuleNotFoundError as error:
        raise MissingExtra("Building an index", "rag") from error
    chunks: list[Chunk] = []
    for number, section in enumerate(document.sections):
        text = document.text[section.start : section.end]
        pieces: list[tuple[int, int]] = [(0, len(text))]
        if count_tokens(text) > chunking.tokens:
            overlap = chunking.overlap or None
            cut_up: Any = split(text, chunking.tokens, count_tokens, memoize=False, offsets=True, overlap=overlap)
            pieces = cut_up[1]
        for piece, (start, end) in enumerate(pieces):
            body = text[start:end]
            chunks.append(
                Chunk(
                    id=f"{document.key}#{number:04d}.{piece:03d}",
                    document=document.key,
                    version=document.version,
                    title=document.title,
                    section=list(section.path),
                    text=body,
                    start=section.start + start,
                    end=section.start + end,
                    tokens=count_tokens(body),
                    acl=document.acl,
                    updated=document.updated,
                )
            )
    return chunks


def searched_text(chunk: Chunk) -> str:
    """Give the text a chunk is found by: its title and heading path, then its own words."""
    return "\n".join((chunk.title, " > ".join(chunk.section), chunk.text))
