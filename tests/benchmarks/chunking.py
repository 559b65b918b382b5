"""Measure how sections are cut: the characters that answer a question, among those that are packed for it.

    python -m tests.benchmarks.chunking [--write docs/measures/chunking.md] [--only CORPUS …]

The data is chunking_evaluation (../shared/data): 472 questions over five corpora, each with the exact character spans
that answer it. Every setting cuts the same text, indexes it, searches it lexically as the default does, and packs what
was found: the scorers span_recall, span_precision and span_iou count what was packed. Two ways of packing, since six
large chunks hold more text than six small ones: the default's (6 passages, at most 2,000 tokens), and as many as fit
800 tokens.

Differences from the default are paired by question; the interval is the one that decides at the gate: two
pseudo-groups, one-sided alpha .025 (bundlectl/evaluation/statistics.py).
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bundlectl.evaluation.scorers.spans import Piece, overlap, span_iou, span_precision, span_recall
from bundlectl.evaluation.statistics import interval, t_quantile
from bundlectl.inference.embeddings import WordLlamaEmbedder
from bundlectl.model.components import Retrieval
from bundlectl.model.documents import Chunking
from bundlectl.model.suite import ExpectedSpan
from bundlectl.retrieval.chunking import cut
from bundlectl.retrieval.index import build_index, open_index
from bundlectl.retrieval.packing import pack
from tests.benchmarks.retrieval_quality import DATA, EMBEDDING, EVERYTHING, HELD_OUT, TUNING, answers, spans

SETTINGS: Final = {
    "180 tokens (default)": Chunking(),
    "90 tokens": Chunking(tokens=90),
    "360 tokens": Chunking(tokens=360),
    "180 tokens, 45 repeated": Chunking(tokens=180, overlap=45),
}
PACKINGS: Final = {"6 passages, 2,000 tokens": (6, 2000), "800 tokens": (1000, 800)}
FORMULAS: Final = (span_recall, span_precision, span_iou)
DEFAULT: Final = "180 tokens (default)"

Rows = list[list[float]]
"""By question, what each formula gives."""


def measure(name: str, chunking: Chunking, embedder: WordLlamaEmbedder) -> tuple[int, dict[str, Rows]]:
    """Cut and search one corpus; give the number of chunks, and the scores by way of packing."""
    corpus = spans(name)
    use = Retrieval.model_validate({"index": "quality", "snapshot": "following", "mode": "lexical", "rerank": "none"})
    scored: dict[str, Rows] = {packing: [] for packing in PACKINGS}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        made = build_index(
            "quality", corpus.documents, chunking=chunking, embedding=EMBEDDING, embedder=embedder, folder=place
        )
        index = open_index(place, made, embedder)
        for question, places in answers(name):
            wanted = [ExpectedSpan(document=corpus.documents[0].key, start=a, end=b) for a, b in places]
            hits = index.search_now(question, EVERYTHING, use).hits
            for packing, (top, tokens) in PACKINGS.items():
                packed = pack(hits, context_tokens=tokens, top=top).passages
                pieces = [Piece(p.document, p.version, p.start or 0, p.end or 0, p.text) for p in packed]
                found = overlap(wanted, pieces)
                scored[packing].append([formula(found) for formula in FORMULAS])
    chunks = sum(len(cut(document, chunking)) for document in corpus.documents)
    return chunks, scored


def table(corpora: Sequence[str]) -> Iterator[str]:
    """Give the lines of the page's tables."""
    embedder = WordLlamaEmbedder()
    every: dict[str, dict[str, Rows]] = {setting: {packing: [] for packing in PACKINGS} for setting in SETTINGS}
    lines: dict[str, list[str]] = {packing: [] for packing in PACKINGS}
    for name in corpora:
        found = {setting: measure(name, chunking, embedder) for setting, chunking in SETTINGS.items()}
        for packing in PACKINGS:
            for setting, (chunks, scored) in found.items():
                every[setting][packing] += scored[packing]
                part = f"{name}, {len(scored[packing])} questions"
                lines[packing].append(_line(part, setting, chunks, scored[packing], found[DEFAULT][1][packing]))
    for packing in PACKINGS:
        yield f"### Packed: {packing}\n"
        figures = ("recall", "precision", "IoU")
        head = ("corpus", "chunks", "cut at", *figures, *(f"{name}: difference" for name in figures))
        yield f"| {' | '.join(head)} |"
        yield "| --- | ---: | --- | ---: | ---: | ---: | --- | --- | --- |"
        yield from lines[packing]
        for setting in SETTINGS:
            rows, default = every[setting][packing], every[DEFAULT][packing]
            yield _line(f"all {len(rows)} questions", setting, None, rows, default)
        yield ""


def _line(part: str, setting: str, chunks: int | None, rows: Rows, default: Rows) -> str:
    values = [_value([row[at] for row in rows]) for at in range(len(FORMULAS))]
    gaps = ["", "", ""]
    if setting != DEFAULT:
        gaps = [_gap([row[at] - theirs[at] for row, theirs in zip(rows, default, strict=True)]) for at in range(3)]
    figures = " | ".join([*values, *gaps])
    return f"| {part} | {chunks if chunks is not None else ''} | {setting} | {figures} |"


def _value(scores: Sequence[float]) -> str:
    half = t_quantile(0.975, len(scores) - 1) * statistics.stdev(scores) / math.sqrt(len(scores))
    return f"{statistics.fmean(scores):.3f} ± {half:.3f}"


def _gap(differences: Sequence[float]) -> str:
    found = interval(differences, 0.025)
    return f"{sum(differences) / len(differences):+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


PAGE: Final = """# Chunking, measured

How much of the text that answers a question is packed for it, by how sections are cut. This page is written by `python
-m tests.benchmarks.chunking --write docs/measures/chunking.md`, which says what is measured. The corpora and questions
are those of Chroma's chunking evaluation; the questions were written by a language model that saw the text, so they
repeat its words more than people do. Recall, precision and IoU count characters: docs/evaluation.md.

Default settings were chosen before these figures were computed. What follows ± is half of a 95 % interval of the mean
over questions (Student's t). Intervals of differences are 95 %, paired by question, as wide as the gate's.

{tables}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page")
    parser.add_argument("--only", nargs="*", help="corpora (default: all)")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no data at {DATA}", file=sys.stderr)
        return 0
    lines = []
    for line in table(options.only or (*TUNING, *HELD_OUT)):
        print(line, flush=True)
        lines.append(line)
    if options.write is not None:
        options.write.parent.mkdir(parents=True, exist_ok=True)
        options.write.write_text(PAGE.format(tables="\n".join(lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
