"""A judge for the fake model server: it rules by simple rules on what it is shown, in the form it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.support.fake_models import Say, Step

MODEL = "judge-2026-01"


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+", text) if part.strip()]


def holds(context: str, statement: str) -> bool:
    """Whether every word of a statement stands in the context."""
    return words(statement) <= words(context)


def grade(shown: dict[str, Any]) -> float:
    """Give the best level for the reference's own words, the lowest for none of them."""
    scores = sorted(level["score"] for level in shown["levels"])
    found = words(shown["answer"]) >= words(shown.get("reference", "yes"))
    return float(scores[-1] if found else scores[0])


def prefer(shown: dict[str, Any]) -> str:
    """Prefer the answer that holds the reference."""
    wanted = words(shown.get("reference", "yes"))
    first, second = words(shown["first"]) >= wanted, words(shown["second"]) >= wanted
    return "tie" if first == second else "first" if first else "second"


def first_always(shown: dict[str, Any]) -> str:
    """Prefer what stands first, whatever it says."""
    return "first"


def judge(
    *,
    graded: Callable[[dict[str, Any]], Any] = grade,
    preferred: Callable[[dict[str, Any]], str] = prefer,
    model: str = MODEL,
) -> Callable[[dict[str, Any]], Step]:
    """Give what the server replies to a judge's questions."""

    def reply(body: dict[str, Any]) -> Step:
        return Say(
            json.dumps(ruling(body["messages"][-1]["content"], _properties(body), graded, preferred)), model=model
        )

    return reply


def ruling(
    text: str,
    asked: dict[str, Any],
    graded: Callable[[dict[str, Any]], Any] = grade,
    preferred: Callable[[dict[str, Any]], str] = prefer,
) -> dict[str, Any]:
    """Answer one question of a rubric, a preference, or a metric of ragas, by the form that it wants."""
    if "score" in asked:
        return {"reason": "by its words", "score": graded(json.loads(text))}
    if "better" in asked:
        return {"reason": "by its words", "better": preferred(json.loads(text))}
    shown = _shown(text)
    if "claims" in asked:
        return {"claims": sentences(shown["response"])}
    if "classifications" in asked:
        return {
            "classifications": [
                {"statement": one, "reason": "by its words", "attributed": int(holds(shown["context"], one))}
                for one in sentences(shown["answer"])
            ]
        }
    if "noncommittal" in asked:
        return {"question": f"What about {shown['response']}?", "noncommittal": 0}
    if "verdict" in asked:
        return {"reason": "by its words", "verdict": int(bool(words(shown["context"]) & words(shown["answer"])))}
    if "context" in shown:
        return {
            "statements": [
                {"statement": one, "reason": "by its words", "verdict": int(holds(shown["context"], one))}
                for one in shown["statements"]
            ]
        }
    return {"statements": sentences(shown["answer"])}


def _properties(body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = body["response_format"]["json_schema"]["schema"]["properties"]
    return found


def _shown(prompt: str) -> dict[str, Any]:
    """Give the input that stands at the end of a prompt of ragas: its last JSON object."""
    decoder = json.JSONDecoder()
    at = max(match.start() for match in re.finditer(r"^\s*(?:Input|input):\s*\{", prompt, re.MULTILINE))
    value, _ = decoder.raw_decode(prompt[prompt.index("{", at) :])
    return dict(value)


BOOK = {
    "version": "test",
    "currency": "USD",
    "prices": [
        {"provider": "openai", "model": "m", "input": 1, "output": 1},
        {"provider": "openai", "model": "judge", "input": 10, "output": 10},
    ],
}
"""A price book in which answers and rulings cost something."""
