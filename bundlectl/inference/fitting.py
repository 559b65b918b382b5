"""Whether bindings fit a bundle: asked before they are signed, and by the same rules when a provider is opened.

Only what can be told without a network, and on any machine: a region may also come from where the router runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bundlectl.inference.bedrock_settings import BedrockGuard, ConverseParameters, first_problem
from bundlectl.model.bindings import Bindings, ModelBinding
from bundlectl.model.bundle import Components
from bundlectl.model.components import Model


def misfits(bindings: Bindings, parts: Components) -> list[str]:
    """Say what keeps a bundle from being served with bindings; empty: nothing that can be told without a network."""
    indexes = {retrieval.index for retrieval in parts.retrieval.values()}
    problems = [
        f"they name the {what} {name}, which the bundle does not have (it has {', '.join(sorted(known)) or 'none'})"
        for what, named, known in (
            ("model", {*bindings.models, *bindings.disabled_models}, set(parts.models)),
            ("index", set(bindings.indexes), indexes),
            ("task", set(bindings.limits.named_tasks()), set(parts.application.tasks)),
            ("route", set(bindings.limits.named_routes()), set(parts.routes.routes)),
        )
        for name in sorted(named - known)
    ]
    for name in sorted({route.model for route in parts.routes.routes.values()} - set(bindings.disabled_models)):
        bound = bindings.models.get(name) or ModelBinding()
        problems += provider_misfits(name, parts.models[name], bound, bindings.guards)
    return problems + _guard_misfits(parts, bindings.guards)


def _guard_misfits(parts: Components, guards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    named = {
        side.bedrock.guard
        for profile in parts.guardrails.values()
        for side in (profile.input, profile.output)
        if side.bedrock is not None
    }
    problems = [
        f"they bind no guards.{name}, which a profile of the bundle applies" for name in sorted(named - set(guards))
    ]
    for name in sorted(named & set(guards) - {"bedrock"}):
        try:
            BedrockGuard.model_validate(guards[name])
        except ValidationError as error:
            problems.append(f"guards.{name} does not name a guardrail: {first_problem(error)}")
    return problems


def provider_misfits(
    name: str, model: Model, binding: ModelBinding, guards: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Say what keeps the provider of one model from being opened as it is bound."""
    if "@" in (binding.base_url or "").partition("://")[2].partition("/")[0]:
        return [f"the model {name} has a base_url with a user in it; what lets in is bound as its credential"]
    match model.provider:
        case "openai":
            # Where texts are sent is never guessed.
            return [] if binding.base_url else [f"the model {name} has no base_url, and is not among disabled_models"]
        case "bedrock":
            return _bedrock(name, model, guards) + _jobs(name, binding)
        case "sagemaker":
            return sagemaker_misfits(name, binding)
        case _:
            return []


def sagemaker_misfits(name: str, binding: ModelBinding) -> list[str]:
    """Say what is bound to a model on SageMaker that its endpoint does not take."""
    problems: list[str] = []
    if binding.credential is not None:
        problems.append(
            f"the model {name} has a credential, and SageMaker takes none: its requests are signed with the AWS "
            "credentials of the process"
        )
    if binding.async_input is not None and (binding.inference_component or binding.target_variant):
        problems.append(
            f"the model {name} has async_input beside an inference_component or target_variant, which asynchronous "
            "endpoints do not choose by request"
        )
    return problems


def _jobs(name: str, binding: ModelBinding) -> list[str]:
    """Say what keeps calls of a model from becoming batch jobs where they are meant to."""
    if (binding.batch_s3 is None) != (binding.batch_role is None):
        return [f"the model {name} needs both batch_s3 and batch_role for batch jobs, and has one of them"]
    if binding.batch_s3 is not None and not binding.batch_s3.startswith("s3://"):
        return [f"the model {name} has a batch_s3 that is no place in S3, like s3://bucket/prefix/"]
    return []


def _bedrock(name: str, model: Model, guards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems: list[str] = []
    try:
        ConverseParameters.model_validate(model.parameters)
    except ValidationError as error:
        problems.append(f"the parameters of the model {name} are not those of Bedrock models: {first_problem(error)}")
    try:
        if "bedrock" in guards:
            BedrockGuard.model_validate(guards["bedrock"])
    except ValidationError as error:
        problems.append(f"guards.bedrock does not name a guardrail: {first_problem(error)}")
    return problems
