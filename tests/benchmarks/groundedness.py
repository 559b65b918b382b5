"""Measure groundedness without a model: which statements it takes for supported, true ones and ones made wrong.

    python -m tests.benchmarks.groundedness [--write docs/measures/groundedness.md]

The questions are those of evals/support.jsonl that the documents answer; each is searched and packed as the example's
bundle does it (lexical search, 6 passages, at most 2,000 tokens). For each question statements are made from what was
packed for it, true ones and false ones, by rules that use no model and a fixed seed:

    true    as it stands · its clauses exchanged at a comma or conjunction · without what is in brackets and without
            adverbs · two sentences that follow one another made one · common words replaced by others of the same sense
    false   a sentence of another document · a sentence of the same document that was not packed · a number changed ·
            negated, or a negation taken out · its longest word replaced by one from elsewhere · a word replaced by its
            opposite

The threshold was chosen on questions of the split ``tuning``; the page shows the held-out ones.
"""

from __future__ import annotations

import argparse
import functools
import math
import random
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bundlectl.evaluation.scorers.grounding import THRESHOLD, Context, content, is_negated
from bundlectl.inference.embeddings import WordLlamaEmbedder
from bundlectl.inference.extractive import sentences
from bundlectl.inference.provider import Passage
from bundlectl.model.components import Retrieval
from bundlectl.model.documents import Chunking
from bundlectl.retrieval.documents import Document
from bundlectl.retrieval.index import build_index, open_index
from bundlectl.retrieval.packing import pack
from tests.benchmarks.retrieval_quality import EMBEDDING, support

SEED: Final = 20261123
THRESHOLDS: Final = (0.5, 0.6, 0.7, THRESHOLD, 0.8, 0.9)
LEAST_WORDS: Final = 6

# fmt: off
SAME: Final = {
    "shows": "displays", "show": "display", "needs": "requires", "need": "require", "begins": "starts",
    "begin": "start", "keeps": "retains", "keep": "retain", "kept": "retained", "lists": "enumerates",
    "uses": "employs", "use": "employ", "used": "employed", "whole": "entire", "every": "each", "makes": "creates",
    "make": "create", "made": "created", "holds": "contains", "hold": "contain", "says": "states", "say": "state",
    "gives": "provides", "give": "provide", "given": "provided", "asks": "requests", "puts": "places", "put": "place",
    "several": "multiple", "fails": "breaks", "removes": "deletes", "remove": "delete", "ends": "finishes",
    "changes": "modifies", "change": "modify", "changed": "modified", "wrong": "incorrect", "right": "correct",
    "people": "persons", "finds": "locates", "find": "locate", "sends": "transmits", "send": "transmit",
}
OPPOSITE: Final = {
    "before": "after", "after": "before", "first": "last", "last": "first", "more": "less", "less": "more",
    "new": "old", "newer": "older", "older": "newer", "newest": "oldest", "always": "rarely", "above": "below",
    "below": "above", "all": "few", "every": "hardly any", "lower": "higher", "higher": "lower", "longer": "shorter",
    "public": "private", "private": "public", "same": "different", "different": "same", "fails": "succeeds",
    "allows": "forbids", "accepts": "rejects", "refuses": "accepts", "refused": "accepted", "starts": "stops",
    "stops": "starts", "passes": "fails", "added": "removed", "removed": "added", "production": "development",
    "valid": "invalid", "right": "wrong", "wrong": "right", "largest": "smallest", "most": "fewest", "later": "earlier",
}
# fmt: on
_ADVERBS = re.compile(
    r"\s(?:also|only|just|then|usually|often|still|already|therefore|simply|quickly)\b", re.IGNORECASE
)
_BRACKETS = re.compile(r"\s\([^()]*\)")
_AUXILIARY = re.compile(r"\b(is|are|was|were|can|will|must|may|has|have|does|do|should)\b")
_NEGATION = re.compile(r"\b(?:not|never)\s", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Z][^|\n]*[a-z].*[.]$", re.DOTALL)

Change = Callable[[str, random.Random], str | None]


@dataclass(frozen=True)
class Made:
    """A statement, what kind it is, and what was packed for its question."""

    kind: str
    true: bool
    text: str
    context: Context


def exchanged(text: str, chance: random.Random) -> str | None:
    parts = re.split(r",\s+(?:and|but)\s+|;\s+|,\s+", text.rstrip("."), maxsplit=1)
    return f"{_upper(parts[1])}, {_lower(parts[0])}." if len(parts) == 2 and min(map(len, parts)) > 12 else None


def shortened(text: str, chance: random.Random) -> str | None:
    made = _ADVERBS.sub("", _BRACKETS.sub("", text))
    return made if made != text else None


def reworded(text: str, chance: random.Random) -> str | None:
    return _replaced(text, SAME, chance)


def opposite(text: str, chance: random.Random) -> str | None:
    return _replaced(text, OPPOSITE, chance)


def renumbered(text: str, chance: random.Random) -> str | None:
    found = list(re.finditer(r"(?<![\w.])\d+(?![\w.]*\w)", text))
    if not found:
        return None
    at = chance.choice(found)
    return f"{text[: at.start()]}{int(at[0]) + chance.choice((1, 2, 5, 10))}{text[at.end() :]}"


def negated(text: str, chance: random.Random) -> str | None:
    if _NEGATION.search(text):
        made = _NEGATION.sub("", text, count=1)
        return made if not is_negated(made) else None
    return None if is_negated(text) or not _AUXILIARY.search(text) else _AUXILIARY.sub(r"\1 not", text, count=1)


def _replaced(text: str, table: dict[str, str], chance: random.Random) -> str | None:
    found = [match for match in re.finditer(r"[a-z]+", text) if match[0] in table]
    if not found:
        return None
    at = chance.choice(found)
    return text[: at.start()] + table[at[0]] + text[at.end() :]


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


TRUE: Final[dict[str, Change]] = {
    "as it stands": lambda text, chance: text,
    "clauses exchanged": exchanged,
    "without brackets and adverbs": shortened,
    "a word of the same sense": reworded,
}
FALSE: Final[dict[str, Change]] = {"a number changed": renumbered, "negated": negated, "an opposite": opposite}


def plain_sentences(text: str) -> list[str]:
    """Give the whole sentences of prose: no headings, rows or code."""
    found = [" ".join(text[start:end].split()) for start, end in sentences(text)]
    return [one for one in found if _PLAIN.fullmatch(one) and len(one.split()) >= LEAST_WORDS]


def statements(split: str) -> Iterator[Made]:
    """Make the statements of a split, the same each time."""
    corpus = support(split)
    chance = random.Random(f"{SEED} {split}")
    by_key = {document.key: document for document in corpus.documents}
    said = {key: plain_sentences(document.text) for key, document in by_key.items()}
    use = Retrieval.model_validate({"index": "quality", "snapshot": "following", "mode": "lexical", "rerank": "none"})
    embedder = WordLlamaEmbedder()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = build_index(
            "quality",
            corpus.documents,
            chunking=Chunking(),
            embedding=EMBEDDING,
            embedder=embedder,
            folder=place,
        )
        index = open_index(place, made, embedder)
        for question in corpus.questions:
            hits = index.search_now(question.text, question.allowed, use).hits
            passages = pack(hits, context_tokens=2000, top=6).passages
            if passages:
                yield from _of_question(passages, said, by_key, chance)


def _of_question(
    passages: Sequence[Passage], said: dict[str, list[str]], documents: dict[str, Document], chance: random.Random
) -> Iterator[Made]:
    context = Context(passages)
    packed = [one for passage in passages for one in plain_sentences(passage.text)]
    if not packed:
        return

    def some(pool: Sequence[str], change: Change) -> str | None:
        """Give the first of the pool, in chance's order, that the change can be made to."""
        for text in chance.sample(list(pool), len(pool)):
            found = change(text, chance)
            if found is not None:
                return found
        return None

    for true, changes in ((True, TRUE), (False, FALSE)):
        for kind, change in changes.items():
            if (text := some(packed, change)) is not None:
                yield Made(kind, true, text, context)
    passage = chance.choice(passages)
    row = plain_sentences(passage.text)
    if len(row) > 1:
        at = chance.randrange(len(row) - 1)
        yield Made("two made one", True, f"{row[at].rstrip('.')}, and {_lower(row[at + 1])}", context)
    whole = " ".join(" ".join(passage.text.split()) for passage in passages)
    seen = {passage.document for passage in passages}
    elsewhere = [one for key in sorted(said.keys() - seen) for one in said[key]]
    beside = [one for key in sorted(seen) for one in said[key] if one not in whole]
    for kind, pool in (("of another document", elsewhere), ("of the same document, not packed", beside)):
        if pool:
            yield Made(kind, False, chance.choice(pool), context)
    strange = sorted({word for one in elsewhere for word in re.findall(r"[a-z]{6,}", one)})

    def renamed(text: str, chance: random.Random) -> str | None:
        found = [match for match in re.finditer(r"[a-z]{6,}", text) if content(match[0])]
        fresh = [word for word in strange if not content(word) <= content(whole)]
        if not found or not fresh:
            return None
        at = max(found, key=lambda match: (len(match[0]), match.start()))
        return text[: at.start()] + chance.choice(fresh) + text[at.end() :]

    if (text := some(packed, renamed)) is not None:
        yield Made("its longest word replaced", False, text, context)


def wilson(found: int, of: int) -> tuple[float, float]:
    """Give the 95 % Wilson interval of a share."""
    z = 1.959964
    share = found / of
    middle, half = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    return (middle - half) / (1 + z * z / of), (middle + half) / (1 + z * z / of)


def tables(split: str) -> Iterator[str]:
    """Give the lines: by kind at the threshold, then all of them by threshold."""
    made = list(statements(split))
    supported = functools.cache(lambda at, threshold: made[at].context.supports(made[at].text, threshold))
    yield f"| statement, {split} | is | of them | called supported | 95 % |"
    yield "| --- | --- | ---: | ---: | --- |"
    for true in (True, False):
        for kind in dict.fromkeys(one.kind for one in made if one.true is true):
            rows = [at for at, one in enumerate(made) if one.kind == kind]
            found = sum(supported(at, THRESHOLD) for at in rows)
            low, high = wilson(found, len(rows))
            word = "true" if true else "false"
            yield f"| {kind} | {word} | {len(rows)} | {found / len(rows):.3f} | {low:.3f} to {high:.3f} |"
    yield ""
    yield f"| threshold, {split} | true ones called supported | false ones called supported |"
    yield "| ---: | ---: | ---: |"
    for threshold in THRESHOLDS:
        shares = []
        for true in (True, False):
            rows = [at for at, one in enumerate(made) if one.true is true]
            shares.append(sum(supported(at, threshold) for at in rows) / len(rows))
        yield f"| {threshold:g} | {shares[0]:.3f} | {shares[1]:.3f} |"


PAGE: Final = """# Groundedness, measured

How often the scorer `groundedness`, which uses no model, takes a statement for supported by the passages that were
packed. This page is written by `python -m tests.benchmarks.groundedness --write docs/measures/groundedness.md`, which
says how the statements are made. They are made by rules, from the example's documents: real answers are worded more
freely, so more of what is true will be called unsupported than here, and this page says nothing about other languages.

A good scorer calls true ones supported and false ones not. The threshold is {threshold:g}.

{tables}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="heldout", choices=("tuning", "heldout"))
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page, of the held-out questions")
    options = parser.parse_args()
    lines = list(tables("heldout" if options.write is not None else options.split))
    print("\n".join(lines))
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(PAGE.format(threshold=THRESHOLD, tables="\n".join(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
