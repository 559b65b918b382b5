"""What bundles and bindings may set for models on Bedrock; read where sources are checked and models are called."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bundlectl.model.types import Strict


class ConverseParameters(Strict):
    """A model's ``parameters``, as bundles write them for Bedrock.

    ``structured_output`` is how a JSON Schema reaches the model: as an instruction in the system prompt (every model),
    as a tool that it must call, or as the API's ``outputConfig`` (the models that have it). ``prompt_cache`` puts a
    cache point behind the system prompt. ``additional`` goes to the model as it is.
    """

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    stop: list[str] | None = None
    additional: dict[str, Any] | None = None
    structured_output: Literal["prompt", "tool", "schema"] = "prompt"
    prompt_cache: Literal["5m", "1h"] | None = None
    service_tier: Literal["priority", "default", "flex", "reserved"] | None = None
    latency: Literal["standard", "optimized"] | None = None


class BedrockGuard(Strict):
    """A guardrail, by id or ARN. Every Bedrock model of the environment is called with the one bound as ``bedrock``.

    ``region`` is for guardrails that profiles apply on their own; an ARN says it already.
    """

    id: Annotated[str, Field(min_length=1, max_length=2048)]
    version: Annotated[str, Field(pattern=r"^([1-9][0-9]{0,7}|DRAFT)$")]
    region: str | None = None


def first_problem(error: ValidationError) -> str:
    """Say what is wrong first."""
    found = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(str(part) for part in found['loc'])}: {found['msg']}"
