"""Does retrieved text read like orders to a model? A signal for people who look at receipts, and never an authority.

Nothing is decided by it: access, scopes, filter, route and guards are settled without looking at retrieved text. The
patterns know the usual English wordings and miss what is paraphrased, encoded or in another language.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import re2

_ORDER = r"(?:say|state|reply|respond|answer|output|print|write|tell|return|claim|include|conclude|mention)"
_RULES = r"(?:instruction|prompt|rule|direction|guideline|command|order|constraint)s?"
_READER = r"(?:ai|a\.i\.|llm|assistant|model|chat ?bot|language model|agent|gpt)s?"

PATTERNS: Final = (
    rf"\b(?:ignore|disregard|forget|override|bypass|skip)\b(?:\W+\w+){{0,5}}\W+{_RULES}\b",
    rf"\b(?:ignore|disregard|forget)\b(?:\W+\w+){{1,8}}\W+(?:and|but|then)\W+(?:\w+\W+){{0,2}}{_ORDER}\b",
    r"\b(?:ignore|disregard|forget)\W+(?:everything|anything|all|the above|what)\b",
    rf"\b(?:do not|don'?t|never|stop)\W+(?:follow|obey|listen to|apply|use)\b(?:\W+\w+){{0,5}}\W+{_RULES}\b",
    rf"\b(?:new|updated|additional|hidden|secret|real|actual)\W+{_RULES}\W*(?::|\bfor\b|\bto\b|\bis\b|\bare\b)",
    rf"\b(?:follow|obey|execute|apply)\b(?:\W+\w+){{0,4}}\W+{_RULES}\W+(?:instead|only|below|here|in this)\b",
    r"\byou(?:'re| are| will be| must act)\W+(?:now|no longer|from now on|going to act|to act)\b",
    r"\b(?:pretend|act|behave|role ?play)\W+(?:to be|like you|that you|as an? unrestricted)\b",
    r"\b(?:attention|note|message|important|instructions?|hey|dear|warning)\W+(?:to|for)?\W*"
    rf"(?:the |this |any |all )?{_READER}\b",
    rf"\b(?:if|when) you(?:'re| are)\W+(?:an?\W+)?(?:\w+\W+){{0,2}}{_READER}\b",
    r"\b(?:reveal|show|print|repeat|output|disclose|leak|send)\b(?:\W+\w+){0,4}\W+"
    r"(?:system prompt|your (?:instructions|prompt|rules))\b",
    rf"\binstead\W+(?:of\b(?:\W+\w+){{1,8}}\W+)?(?:just |only |simply |please )?{_ORDER}\b",
    rf"\b{_ORDER}\b(?:\W+\w+){{0,3}}\W+(?:instead|regardless|no matter what)\b",
    r"<\|(?:im_start|im_end|system|endoftext)\|>|\[/?INST\]|<<SYS>>|(?:^|\n)\s*(?:#+\s*)?(?:system|assistant|developer)\s*(?:prompt|message)?\s*:",
)
"""RE2, without regard to case."""


@cache
def _compiled() -> Any:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    found = re2.Set.SearchSet(options)
    for pattern in PATTERNS:
        found.Add(pattern)
    found.Compile()
    return found


def reads_like_orders(text: str) -> bool:
    """Say whether any of the patterns is in the text."""
    return bool(_compiled().Match(text))
