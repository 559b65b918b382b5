"""Measure the guards' detectors, and the signal for orders in retrieved text; write what was found as a page.

    python -m tests.benchmarks.guard_quality [--write docs/guard-quality.md]

Data: the 1,500 sentences with labelled spans of presidio-research, and of PurpleLlama's CyberSecEval the prompt
injections and the benign prompts of its false-refusal test; both are read where they lie (see ``DATA``).
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundlectl.inference.presidio import PresidioProcesses
from bundlectl.model.components import Detector, Guard, PresidioCheck
from bundlectl.stages.guards import CompiledGuard
from bundlectl.stages.injection import reads_like_orders

DATA = Path(__file__).parents[3] / "shared" / "data"
ENTITIES = {
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "credit_card",
    "IBAN_CODE": "iban",
    "US_SSN": "us_ssn",
    "IP_ADDRESS": "ip_address",
}
"""The data set's name (and Presidio's) -> ours."""
BATCH = 50
Span = tuple[int, int]


@dataclass
class Count:
    """Of one entity and one detector: labelled spans covered whole, touched at all; findings that touch no label."""

    labelled: int = 0
    whole: int = 0
    touched: int = 0
    false_alarms: int = 0

    def add(self, gold: Sequence[Span], found: Sequence[Span]) -> None:
        self.labelled += len(gold)
        for start, end in gold:
            self.whole += any(s <= start and e >= end for s, e in found)
            self.touched += any(s < end and e > start for s, e in found)
        self.false_alarms += sum(not any(s < end and e > start for start, end in gold) for s, e in found)


Spans = dict[str, list[list[Span]]]
"""Entity -> per sentence, what was found."""


def ours(texts: Sequence[str]) -> Spans:
    found: Spans = {}
    for name, entity in ENTITIES.items():
        guard = CompiledGuard.compile(
            Guard(detectors=[Detector.model_validate({"entity": entity, "action": "redact"})])
        )
        found[name] = [[(f.start, f.end) for f in guard._find(text) or []] for text in texts]
    return found


async def presidio(texts: Sequence[str]) -> Spans:
    check = PresidioCheck(entities=dict.fromkeys(ENTITIES, "redact"), timeout="120s")
    found: Spans = {name: [] for name in ENTITIES}
    async with PresidioProcesses() as processes:
        inspector = processes.inspector(check)
        await inspector.ready()
        for begin in range(0, len(texts), BATCH):
            question = {"texts": texts[begin : begin + BATCH], "entities": sorted(ENTITIES), "score": check.score}
            for spans in await inspector._worker.ask(question, 120.0):
                by_name: dict[str, list[Span]] = defaultdict(list)
                for start, end, name, _ in spans:
                    by_name[name].append((start, end))
                for name in ENTITIES:
                    found[name].append(by_name[name])
    return found


def counts(sentences: Sequence[Any], found: Spans) -> dict[str, Count]:
    made = {name: Count() for name in ENTITIES}
    for position, sentence in enumerate(sentences):
        for name, count in made.items():
            gold = [
                (span["start_position"], span["end_position"])
                for span in sentence["spans"]
                if span["entity_type"] == name
            ]
            count.add(gold, found[name][position])
    return made


def page() -> str:
    sentences = json.loads((DATA / "presidio-research" / "synth_dataset_v2.json").read_text())
    texts = [sentence["full_text"] for sentence in sentences]
    mine, theirs = counts(sentences, ours(texts)), counts(sentences, asyncio.run(presidio(texts)))
    rows = [
        f"| {ENTITIES[name]} | {mine[name].labelled} | {_share(mine[name])} | {mine[name].false_alarms} "
        f"| {_share(theirs[name])} | {theirs[name].false_alarms} |"
        for name in ENTITIES
    ]
    return "\n".join([HEAD, *rows, ORDERS, *_orders(), ""])


def _share(count: Count) -> str:
    return f"{count.whole / count.labelled:.2f} ({count.touched / count.labelled:.2f})"


def _orders() -> list[str]:
    folder = DATA / "purplellama-prompt-injection"
    injections = json.loads((folder / "prompt_injection.json").read_text())
    benign = json.loads((folder / "mitre_frr.json").read_text())
    corpora = sorted((DATA / "chunking_evaluation").glob("*.md"))
    texts = [c.read_text() for c in corpora if c.name != "README.md"]
    pieces = [text[at : at + 1200] for text in texts for at in range(0, len(text), 1200)]
    guide = [page.read_text(errors="replace") for page in sorted((DATA / "s3-user-guide").rglob("*.md"))]
    manual = [text[at : at + 1200] for text in guide for at in range(0, len(text), 1200)]
    by_kind: dict[str, list[str]] = defaultdict(list)
    for injection in injections:
        by_kind[injection["injection_type"]].append(injection["user_input"])
    groups: list[tuple[str, list[str]]] = [
        ("injections in content (indirect)", by_kind["indirect"]),
        ("injections by the user (direct)", by_kind["direct"]),
        ("benign prompts", [prompt["mutated_prompt"] for prompt in benign]),
        ("pieces of 1,200 characters of five plain corpora", pieces),
        ("pieces of 1,200 characters of a product's user guide", manual),
    ]
    return [f"| {name} | {sum(map(reads_like_orders, held))} | {len(held)} |" for name, held in groups]


HEAD = """\
# What the guards find

Measured by `python -m tests.benchmarks.guard_quality`, on 1,500 synthetic sentences with labelled spans
(presidio-research). *Found* is the share of the labelled spans that are covered whole, in brackets those touched at
all; a *false alarm* is a finding that touches no label of its entity. Our detectors are RE2 patterns with checksums;
Presidio's are its pattern recognisers at a score of 0.4, without a language model and without its URL recogniser.
Ours were written with these sentences at hand, so expect less of them on your texts. The cards that they miss are
numbers of 12 digits, and numbers outside of the ranges that issuers have.

| entity | labelled | ours: found | ours: false alarms | Presidio: found | Presidio: false alarms |
| --- | --- | --- | --- | --- | --- |"""

ORDERS = """
Names, places, organisations and addresses of streets have no pattern: for those, bind a guardrail of Amazon Bedrock
or give Presidio an installed spaCy pipeline.

## Orders in retrieved text

Receipts name packed chunks that read like orders to a model (`retrieval.suspicious`). The patterns are plain English
wordings, written before they were tried on the injections and the benign prompts; three wordings were taken out
because the user guide uses them. They miss what is paraphrased, encoded or in another language, so the signal is for
people, and nothing is decided by it.

| texts | flagged | of |
| --- | --- | --- |"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guard_quality")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    made = page()
    show: Callable[[str], Any] = options.write.write_text if options.write is not None else print
    show(made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
