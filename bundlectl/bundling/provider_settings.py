"""Are a model's parameters and an environment's guards what their provider takes? Found here, not by the first call."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bundlectl.bundling.messages import problems_of
from bundlectl.bundling.source_models import SourceBundle
from bundlectl.bundling.yaml import Document
from bundlectl.bundling.yaml import Path as At
from bundlectl.inference.bedrock_settings import BedrockGuard, ConverseParameters
from bundlectl.model.bindings import Bindings
from bundlectl.model.errors import Problem
from bundlectl.model.types import Strict


def check_parameters(bundle: SourceBundle, document: Document) -> list[Problem]:
    """Check the parameters of models on Bedrock; other providers take whatever their servers know."""
    return [
        problem
        for name, model in bundle.models.items()
        if model.provider == "bedrock"
        for problem in _fits(model.parameters, ConverseParameters, document, ("models", name, "parameters"))
    ]


def check_guards(bound: Bindings, at: Document) -> list[Problem]:
    """Check the guardrails of Amazon Bedrock that an environment binds."""
    return [
        problem for name, guard in bound.guards.items() for problem in _fits(guard, BedrockGuard, at, ("guards", name))
    ]


def _fits(value: dict[str, Any], model: type[Strict], document: Document, at: At) -> list[Problem]:
    try:
        model.model_validate(value)
    except ValidationError as error:
        return problems_of(error, document, model, at)
    return []
