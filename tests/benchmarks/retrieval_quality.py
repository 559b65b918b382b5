"""Measure retrieval: which words, which parameters, which mode, on questions with known answering spans.

    python -m tests.benchmarks.retrieval_quality --tune     grids on the tuning corpora and the tuning split
    python -m tests.benchmarks.retrieval_quality            the frozen settings on everything

The data is chunking_evaluation (../shared/data): 472 questions, each with the exact character spans of one
of five corpora that answer it, written by a language model that saw the text; and evals/support.jsonl: questions
about this project in a customer's words, each with the sections that answer it. A chunk is relevant when it
overlaps such a span or lies in such a section. The tuning corpora and the tuning split may be looked at as often
as one likes; the held-out ones are for the settings as they stand in the code.

    nDCG@10   order of the relevant chunks
    hit@6     a relevant chunk is among the six that the default packs
    recall@6  share of the answering spans or sections that one of the six shows

Differences are paired by question, with a 95 % t interval, per corpus.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml
from scipy import stats

from bundlectl.inference.embeddings import WordLlamaEmbedder
from bundlectl.inference.words import STOP_WORDS, stem, terms, unique, words
from bundlectl.model.components import Embedding, Retrieval
from bundlectl.model.documents import Acl, Chunk, Chunking, IndexSource
from bundlectl.model.suite import Case
from bundlectl.retrieval import scoring, search
from bundlectl.retrieval.chunking import cut, searched_text
from bundlectl.retrieval.documents import Document, make_document, read_documents
from bundlectl.retrieval.formats import Parsed
from bundlectl.retrieval.frontmatter import FrontMatter
from bundlectl.retrieval.index import build_index, open_index
from bundlectl.retrieval.markdown import cut_at
from bundlectl.retrieval.permission import Filter
from bundlectl.retrieval.search import Index

if TYPE_CHECKING:
    from tests.benchmarks.measure import Effort, Result

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "chunking_evaluation"
TUNING = ("wikitexts", "chatlogs")
HELD_OUT = ("state_of_the_union", "finance", "pubmed")
ACL = Acl(tenant="*", scope="docs", roles=["*"])
EMBEDDING = Embedding(provider="wordllama", model="l2_supercat", dimensions=256)
EVERYTHING = Filter("anyone", frozenset({"docs"}), "reader")
METRICS = ("ndcg@10", "hit@6", "recall@6")


Target = Callable[[Chunk], bool]


@dataclass(frozen=True)
class Question:
    """A question, who asks it, and what answers it: one test per span or section, of which a chunk passes any."""

    text: str
    targets: list[Target]
    allowed: Filter = EVERYTHING


@dataclass(frozen=True)
class Corpus:
    name: str
    held_out: bool
    documents: list[Document]
    questions: list[Question]

    @functools.cached_property
    def chunks(self) -> list[Chunk]:
        return [chunk for document in self.documents for chunk in cut(document, Chunking())]

    def score(self, question: Question, ranked: Sequence[Chunk]) -> list[float]:
        """Score a ranking by each of METRICS."""
        good = [any(target(chunk) for target in question.targets) for chunk in ranked]
        relevant = sum(any(target(chunk) for target in question.targets) for chunk in self.chunks)
        gain = sum(1 / math.log2(at + 2) for at, yes in enumerate(good[:10]) if yes)
        ideal = sum(1 / math.log2(at + 2) for at in range(min(10, relevant)))
        found = sum(any(target(chunk) for chunk in ranked[:6]) for target in question.targets)
        return [gain / ideal, float(any(good[:6])), found / len(question.targets)]


def answers(name: str) -> Iterator[tuple[str, list[tuple[int, int]]]]:
    """Give the questions of a corpus of chunking_evaluation, each with the characters that answer it."""
    with (DATA / "questions_df.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["corpus_id"] == name:
                yield row["question"], [(one["start_index"], one["end_index"]) for one in json.loads(row["references"])]


def spans(name: str) -> Corpus:
    """Load a corpus of chunking_evaluation. Its text is taken as it is: the spans count its characters."""
    text = (DATA / f"{name}.md").read_bytes().decode()
    parsed = Parsed(text, cut_at(text, []), None, FrontMatter(body=0))
    questions = []
    for question, places in answers(name):
        targets = [lambda chunk, a=a, b=b: chunk.start < b and a < chunk.end for a, b in places]
        questions.append(Question(question, targets))
    return Corpus(name, name in HELD_OUT, [make_document(f"{name}.txt", parsed, ACL)], questions)


def support(split: str) -> Corpus:
    """Load the example's documents and the questions of one split that they answer."""
    file = ROOT / "bundles" / "support" / "indexes" / "support_docs.yaml"
    source = IndexSource.model_validate(yaml.safe_load(file.read_text()))
    questions = []
    for line in (ROOT / "evals" / "support.jsonl").read_text().splitlines():
        case = Case.model_validate_json(line)
        if case.split == split and case.expected.documents:
            targets = [
                lambda chunk, d=one.document, s=one.section: chunk.document == d and s in (None, chunk.section)
                for one in case.expected.documents
            ]
            allowed = Filter(case.tenant, frozenset(case.scopes), case.role)
            questions.append(Question(str(case.input["question"]), targets, allowed))
    return Corpus(f"support, {split}", split != "tuning", read_documents(source, file), questions)


# ---------------------------------------------------------------- tuning: many settings, in memory


class Bench:
    """A corpus with its counts and vectors, for trying settings without building an index for each."""

    def __init__(self, corpus: Corpus, tokenise: Callable[[str], list[str]], vectors: np.ndarray | None) -> None:
        self.corpus = corpus
        self.tokenise = tokenise
        self.vectors = vectors
        self.counted = [Counter(tokenise(searched_text(chunk))) for chunk in corpus.chunks]
        self.lengths = np.array([float(sum(count.values())) for count in self.counted])
        frequencies = Counter(term for count in self.counted for term in count)
        partition = scoring.Partition(0, ACL, len(corpus.chunks), int(self.lengths.sum()), frequencies)
        self.statistics = scoring.Statistics.over([partition])

    def lexical(self, question: str) -> np.ndarray:
        asked = unique(self.tokenise(question))
        counts = {term: np.array([float(count[term]) for count in self.counted]) for term in asked}
        return scoring.bm25(counts, self.lengths, self.statistics)

    def measure(self, rank: Callable[[np.ndarray, np.ndarray | None], np.ndarray], embed: Embed | None) -> np.ndarray:
        rows = []
        for question in self.corpus.questions:
            near = None
            if embed is not None and self.vectors is not None:
                near = scoring.cosine(self.vectors, embed(question.text))
            scores = rank(self.lexical(question.text), near)
            best = np.argsort(-scores, kind="stable")[:10]
            rows.append(self.corpus.score(question, [self.corpus.chunks[row] for row in best]))
        return np.array(rows)


Embed = Callable[[str], list[float]]


def ranks(scores: np.ndarray) -> np.ndarray:
    places = np.empty(len(scores))
    places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return places


def s_stem(word: str) -> str:
    """Harman's S-stemmer: plurals only."""
    if len(word) > 3:
        if word.endswith("ies") and word[-4] not in "ea":
            return word[:-3] + "y"
        if word.endswith("es") and word[-3] not in "aeo":
            return word[:-1]
        if word.endswith("s") and word[-2] not in "us":
            return word[:-1]
    return word


# fmt: off
ASKING = frozenset((
    "what", "which", "who", "whom", "whose", "when", "where", "why", "how", "does", "do", "did", "can", "could",
    "should", "would", "i", "you", "we", "my", "your",
))
# fmt: on


def tune() -> None:
    embedder = WordLlamaEmbedder()
    embed = functools.lru_cache(None)(lambda text: embedder.embed([text])[0])
    corpora = [spans(name) for name in TUNING]
    vectors = {
        c.name: np.array(embedder.embed([searched_text(k) for k in c.chunks]), dtype=np.float32) for c in corpora
    }

    def line(label: str, benches: list[Bench], rank: Callable[..., np.ndarray], with_vectors: bool = False) -> None:
        means = [bench.measure(rank, embed if with_vectors else None).mean(axis=0) for bench in benches]
        cells = "  ".join(
            f"{b.corpus.name} {m[0]:.3f} {m[1]:.3f} {m[2]:.3f}" for b, m in zip(benches, means, strict=True)
        )
        print(f"{label:44} {cells}   mean nDCG {np.mean([m[0] for m in means]):.4f}", flush=True)

    stops = {"all words": frozenset[str](), "Lucene's 33": STOP_WORDS, "and asking words": STOP_WORDS | ASKING}
    stemmers = {"no stemming": lambda word: word, "plurals": s_stem, "Porter": stem}
    for stem_name, stemmer in stemmers.items():
        for stop_name, stop in stops.items():
            benches = [
                Bench(c, lambda t, s=stop, f=stemmer: [f(w) for w in words(t) if w not in s], None) for c in corpora
            ]
            line(f"{stem_name}, {stop_name}", benches, lambda lexical, near: lexical)
    benches = [Bench(c, terms, vectors[c.name]) for c in corpora]
    for k1 in (0.6, 0.9, 1.2, 1.6):
        for b in (0.5, 0.75, 0.9):
            scoring.K1, scoring.B = k1, b
            line(f"k1 {k1}, b {b}", benches, lambda lexical, near: lexical)
    scoring.K1, scoring.B = FROZEN
    line("vector", benches, lambda lexical, near: near, True)
    for k in (10, 60):
        for weight in (0.5, 0.7, 0.8, 0.9):
            line(
                f"RRF k {k}, lexical weight {weight}",
                benches,
                lambda lexical, near, k=k, w=weight: w / (k + ranks(lexical)) + (1 - w) / (k + ranks(near)),
                True,
            )
    for weight in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        line(f"scores, lexical weight {weight}", benches, lambda a, n, w=weight: scoring.fuse(a, n, w), True)
    with opened(corpus := support("tuning"), embedder) as index:
        for mode in ("lexical", "vector"):
            print(f"support, tuning split, {mode:30}", np.round(run(corpus, index, mode, "none").mean(axis=0), 3))
        for weight in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
            search.fuse = functools.partial(scoring.fuse, weight=weight)
            figures = np.round(run(corpus, index, "hybrid", "none").mean(axis=0), 3)
            print(f"support, tuning split, scores, lexical weight {weight}", figures, flush=True)


FROZEN = (scoring.K1, scoring.B)


# ---------------------------------------------------------------- the test: the real index, frozen settings

SETTINGS = {
    "lexical": ("lexical", "none"),
    "lexical, rerank coverage": ("lexical", "coverage"),
    "lexical, rerank vector": ("lexical", "vector"),
    "vector": ("vector", "none"),
    "hybrid": ("hybrid", "none"),
    "hybrid, rerank coverage": ("hybrid", "coverage"),
}


@contextmanager
def opened(corpus: Corpus, embedder: WordLlamaEmbedder) -> Iterator[Index]:
    with tempfile.TemporaryDirectory() as folder:
        snapshot = build_index(
            "quality",
            corpus.documents,
            chunking=Chunking(),
            embedding=EMBEDDING,
            embedder=embedder,
            folder=Path(folder),
        )
        yield open_index(folder, snapshot, embedder)


def run(corpus: Corpus, index: Index, mode: str, rerank: str) -> np.ndarray:
    use = Retrieval.model_validate({"index": "quality", "snapshot": "following", "mode": mode, "rerank": rerank})
    return np.array(
        [
            corpus.score(question, [hit.chunk for hit in index.search_now(question.text, question.allowed, use).hits])
            for question in corpus.questions
        ]
    )


def test(corpora: Iterable[Corpus], labels: Sequence[str] = tuple(SETTINGS)) -> Iterator[dict[str, object]]:
    embedder = WordLlamaEmbedder()
    for corpus in corpora:
        results: dict[str, np.ndarray] = {}
        took: dict[str, float] = {}
        with opened(corpus, embedder) as index:
            for label in labels:
                mode, rerank = SETTINGS[label]
                begun = time.perf_counter()
                results[label] = run(corpus, index, mode, rerank)
                took[label] = (time.perf_counter() - begun) / len(corpus.questions) * 1000
        if corpus.name in (*TUNING, *HELD_OUT):
            results["textbook BM25: no stemming, k1 1.2"] = textbook(corpus)
        for label, rows in results.items():
            difference = (rows - results["lexical"])[:, 0]
            half = stats.t.ppf(0.975, len(difference) - 1) * difference.std(ddof=1) / math.sqrt(len(difference))
            yield {
                "corpus": corpus.name,
                "held_out": corpus.held_out,
                "questions": len(rows),
                "chunks": len(corpus.chunks),
                "setting": label,
                **{metric: round(float(value), 3) for metric, value in zip(METRICS, rows.mean(axis=0), strict=True)},
                "difference": round(float(difference.mean()), 3),
                "low": round(float(difference.mean() - half), 3),
                "high": round(float(difference.mean() + half), 3),
                "ms": round(took.get(label, 0.0), 1),
            }


def textbook(corpus: Corpus) -> np.ndarray:
    bench = Bench(corpus, words, None)
    scoring.K1, scoring.B = 1.2, 0.75
    try:
        return bench.measure(lambda lexical, near: lexical, None)
    finally:
        scoring.K1, scoring.B = FROZEN


def retrieval_quality(effort: Effort) -> list[Result]:
    """Give the bench's lines: the default against hybrid, same chunks, on the corpora that nothing was tuned on."""
    from tests.benchmarks.measure import Result

    if not DATA.is_dir():
        return []
    found = []
    for row in test((spans(name) for name in HELD_OUT), ("lexical", "hybrid")):
        if row["setting"] == "lexical":
            default = float(str(row["ndcg@10"]))
        elif row["setting"] == "hybrid":
            hybrid = float(str(row["ndcg@10"]))
            gap = f"hybrid less lexical {row['difference']} [{row['low']}, {row['high']}]"
            note = (
                f"lexical against hybrid, {row['questions']} questions; {gap}; the default holds unless it is above 0"
            )
            found.append(Result(f"retrieval, {row['corpus']}", default, hybrid, default / hybrid, "nDCG@10", note))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="try settings on the tuning corpora")
    parser.add_argument("--only", nargs="*", help="corpora to test on (default: all)")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: no data at {DATA}", file=sys.stderr)
        return 0
    if arguments.tune:
        tune()
        return 0
    chosen = arguments.only or (*TUNING, *HELD_OUT, "support, tuning", "support, heldout")
    corpora = (support(name.split(", ")[1]) if name.startswith("support") else spans(name) for name in chosen)
    rows = []
    print("| corpus | setting | nDCG@10 | hit@6 | recall@6 | nDCG against lexical, 95 % | ms |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in test(corpora):
        rows.append(row)
        part = f"{row['corpus']}{'' if row['held_out'] else ' (tuning)'}, n {row['questions']}"
        gap = "" if row["setting"] == "lexical" else f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        figures = f"{row['ndcg@10']:.3f} | {row['hit@6']:.3f} | {row['recall@6']:.3f}"
        print(f"| {part} | {row['setting']} | {figures} | {gap} | {row['ms'] or ''} |", flush=True)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
