"""Amazon Bedrock's ApplyGuardrail as an inspector: the bound guardrail looks at text, whatever model is asked.

https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_ApplyGuardrail.html. The texts are the content
blocks of one call. A guardrail that only anonymises gives each block back; anything else that it detects blocks,
and so does an answer that cannot be told apart.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from bundlectl.inference.aws import AwsService, open_service, path_part
from bundlectl.inference.aws_region import region_of
from bundlectl.inference.bedrock_settings import BedrockGuard
from bundlectl.inference.http import deadline, read_json
from bundlectl.inference.inspection import Inspection, Side
from bundlectl.inference.provider import ProviderError

if TYPE_CHECKING:
    from bundlectl.inference.client import HttpClient

WHAT: Final = "the Bedrock guardrail"

_POLICIES: Final = {
    "topicPolicy": (("topics", "topic", "name"),),
    "contentPolicy": (("filters", "content", "type"),),
    "wordPolicy": (("customWords", "word", None), ("managedWordLists", "word", "type")),
    "sensitiveInformationPolicy": (("piiEntities", "pii", "type"), ("regexes", "regex", "name")),
    "contextualGroundingPolicy": (("filters", "grounding", "type"),),
}
"""Policy -> its lists of findings: the list, our word for it, and the field that names a finding.

A custom word has no name but itself, and what was said is never quoted."""


class BedrockInspector:
    """One version of one guardrail in one region."""

    name: Final = "bedrock"

    def __init__(self, service: AwsService, guard: BedrockGuard, timeout: float) -> None:
        """Take the service and the guardrail; ``timeout`` in seconds."""
        self._timeout = timeout
        self._service = service
        self._path = f"/guardrail/{path_part(guard.id)}/version/{path_part(guard.version)}/apply"

    async def ready(self) -> None:
        """Nothing is asked beforehand: every call is paid for."""

    async def inspect(self, texts: Sequence[str], side: Side) -> Inspection:
        """Ask the guardrail about the texts in one call; empty ones are not sent, for it does not take them."""
        asked = [text for text in texts if text.strip()]
        if not asked:
            return Inspection(tuple(texts), "pass")
        body = {"source": side.upper(), "content": [{"text": {"text": text}} for text in asked]}
        with deadline(asyncio.get_running_loop().time() + self._timeout, WHAT, "answer"):
            response = await self._service.post(self._path, body, {}, WHAT)
            try:
                value = await read_json(response, WHAT)
            finally:
                response.release()
        return _inspection(value, texts, asked)


def _inspection(value: Any, texts: Sequence[str], asked: Sequence[str]) -> Inspection:
    try:
        action = value["action"]
        findings, actions = _findings(value["assessments"])
        units = {name: int(count) for name, count in value["usage"].items() if isinstance(count, int) and count}
        outputs = [output["text"] for output in value.get("outputs") or []]
    except (KeyError, TypeError, AttributeError) as error:
        raise ProviderError("invalid", f"{WHAT} gave a reply that is not in its form.") from error
    if action == "NONE":
        return Inspection(tuple(texts), "flag" if findings else "pass", findings, units)
    if action != "GUARDRAIL_INTERVENED":
        raise ProviderError("invalid", f"{WHAT} gave a reply that is not in its form.")
    whole = len(outputs) == len(asked) and all(isinstance(output, str) for output in outputs)
    if actions == {"ANONYMIZED"} and whole:
        given = iter(outputs)
        redacted = tuple(next(given) if text.strip() else text for text in texts)
        return Inspection(redacted, "redact", findings, units)
    return Inspection((), "block", findings or {"bedrock": 1}, units)


def _findings(assessments: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], set[str]]:
    """Count what was found by name, and give what was done about it, ``NONE`` left out."""
    counts: Counter[str] = Counter()
    actions: set[str] = set()
    for assessment in assessments:
        for name, found in _each(assessment):
            counts[name] += 1
            if found["action"] != "NONE":
                actions.add(found["action"])
    return dict(counts), actions


def _each(assessment: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for policy, lists in _POLICIES.items():
        for key, word, named in lists:
            for found in (assessment.get(policy) or {}).get(key) or []:
                if found.get("detected", True):
                    label = found.get(named) if named is not None else None
                    yield f"bedrock:{word}:{label}" if label else f"bedrock:{word}", found


def open_inspector(
    bound: Mapping[str, Any], timeout: float, http: HttpClient, environ: Mapping[str, str]
) -> BedrockInspector:
    """Open the guardrail of a binding; it may ask AWS for credentials, so not on the event loop.

    Raises:
        ValidationError: the binding names no guardrail.
        UsageError: there is no region, or the AWS configuration is wrong.
        NotFound: there are no credentials.
        BackendUnavailable: who gives the credentials cannot be reached.
    """
    guard = BedrockGuard.model_validate(bound)
    service = open_service(
        http, "bedrock-runtime", region=guard.region or region_of(guard.id), endpoint=None, environ=environ
    )
    return BedrockInspector(service, guard, timeout)
