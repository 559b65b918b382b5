"""The components of a bundle: what each holds, with its defaults.

These types are both what ``bundle.yaml`` is checked against and what the canonical JSON of a layer holds.
A default that is written here is written into the built component; changing one changes only bundles built
afterwards. A field added later must be optional with ``None`` as its default, so that old digests stay.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from bundlectl.model.types import Digest, Duration, Name, RelativePath, StoreName, Strict

COMPONENTS = (
    "access",
    "application",
    "embedding",
    "evaluation",
    "guardrails",
    "models",
    "output",
    "prompts",
    "retrieval",
    "routes",
)
"""Every component, in the order of their layers (sorted)."""


# ---------------------------------------------------------------- application


class Rollback(Strict):
    """Where a rollback goes when none is named: the release before, or one bundle by digest."""

    target: Literal["previous"] | Digest = "previous"


class Task(Strict):
    """One workflow: which prompt, which retrieval, the most it may ever see, and the profiles it may run under."""

    prompt: Name
    retrieval: Name | None = None
    scopes: list[Name] = []
    profiles: list[Name] = Field(min_length=1)


class Application(Strict):
    """The app and the product version this bundle was made for, its tasks, and the rollback target."""

    app: StoreName
    version: str = Field(min_length=1, max_length=100)
    tasks: dict[Name, Task] = Field(min_length=1)
    rollback: Rollback = Rollback()


# ---------------------------------------------------------------- prompts


class Message(Strict):
    """One message; ``content`` is a MiniJinja template."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1, max_length=100_000)


class Prompt(Strict):
    """Messages and the names that their templates may read from ``input``.

    A template sees ``input`` (the declared inputs only), ``passages`` (a list of {n, title, section, text,
    document, updated}) and ``task``, ``response_format``. Everything else is undeclared and refused.
    """

    inputs: list[Name] = ["question"]
    messages: list[Message] = Field(min_length=1, max_length=50)


Prompts = dict[Name, Prompt]


# ---------------------------------------------------------------- models and routes


class Model(Strict):
    """A model by its logical name; the address is a binding."""

    provider: Literal["bedrock", "sagemaker", "openai", "extractive"]
    model: str | None = None
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _named(self) -> Model:
        if self.provider != "extractive" and not self.model:
            raise ValueError(f"provider {self.provider} needs 'model', e.g. model: amazon.nova-lite-v1:0")
        return self


Models = dict[Name, Model]


class Route(Strict):
    """How a request is served: the model, its deadlines, retries of that model, and what follows when it fails.

    ``timeout`` is for the whole call, ``first_token`` for its first text, ``between_tokens`` from one text to the next.
    """

    model: Name
    mode: Literal["sync", "async"] = "sync"
    timeout: Duration = "30s"
    first_token: Duration | None = None
    between_tokens: Duration | None = None
    retries: Annotated[int, Field(ge=0, le=5)] = 1
    fallback: list[Name] = []


class Between(Strict):
    """A range of a number; ``over`` and ``under`` are both exclusive."""

    over: int | None = None
    under: int | None = None


class When(Strict):
    """Conditions of a rule; all that are given must hold.

    ``unhealthy`` names a model: it is disabled, or its circuit is open because it failed repeatedly.
    """

    task: Name | None = None
    profile: Name | None = None
    latency_class: Literal["interactive", "batch"] | None = None
    response_format: Literal["structured_json", "text"] | None = None
    tenant: str | None = None
    role: str | None = None
    prompt_tokens: Between | None = None
    unhealthy: Name | None = None


class Rule(Strict):
    """One line of the selection; without ``when`` it always matches."""

    when: When | None = None
    use: Name


class Routes(Strict):
    """The routes by name, and the rules that choose: the first that matches wins."""

    routes: dict[Name, Route] = Field(min_length=1)
    select: list[Rule] = Field(min_length=1)


# ---------------------------------------------------------------- retrieval and embedding


class Retrieval(Strict):
    """How documents are searched for one use: which index and state of it, how, how many, how much of it is sent."""

    index: Name
    snapshot: Literal["following"] | Digest
    mode: Literal["lexical", "vector", "hybrid"] = "lexical"
    candidates: Annotated[int, Field(ge=1, le=1000)] = 50
    rerank: Literal["none", "coverage", "vector"] = "none"
    top: Annotated[int, Field(ge=1, le=100)] = 6
    context_tokens: Annotated[int, Field(ge=50, le=200_000)] = 2000
    stale_after: Duration | None = None


Retrievals = dict[Name, Retrieval]


class Embedding(Strict):
    """The embedding that queries and index must share."""

    provider: Literal["wordllama", "bedrock", "openai"]
    model: str
    dimensions: Annotated[int, Field(ge=1, le=8192)]


# ---------------------------------------------------------------- guardrails

ENTITIES = ("email", "phone", "credit_card", "iban", "us_ssn", "ip_address", "aws_access_key", "private_key")
"""Entities with a built-in detector: an RE2 pattern, and a checksum where the entity has one."""


class Detector(Strict):
    """What to look for, and what to do about it.

    Either ``entity`` (built in) or ``pattern`` (RE2 syntax) with a ``name``.
    """

    entity: (
        Literal["email", "phone", "credit_card", "iban", "us_ssn", "ip_address", "aws_access_key", "private_key"] | None
    ) = None
    name: Name | None = None
    pattern: str | None = Field(default=None, min_length=1, max_length=2000)
    action: Literal["block", "redact", "flag"]

    @model_validator(mode="after")
    def _one_kind(self) -> Detector:
        if (self.entity is None) == (self.pattern is None):
            raise ValueError("a detector has either 'entity' or 'pattern' (with 'name')")
        if self.pattern is not None and self.name is None:
            raise ValueError("a pattern needs a 'name' that findings are reported under")
        return self


class BedrockCheck(Strict):
    """Amazon Bedrock's ApplyGuardrail, on text that the detectors let through.

    ``guard`` names the guardrail among the environment's ``guards`` bindings. No answer in time blocks.
    """

    guard: Name = "bedrock"
    timeout: Duration = "2s"


PresidioEntity = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]


class PresidioCheck(Strict):
    """Microsoft Presidio's analyzer, in a process of its own, on text that the detectors let through.

    ``entities``: by Presidio's names, and what to do about each. ``score``: the least confidence that counts.
    ``model``: an installed spaCy pipeline, which names, places and organisations need; without one there are patterns
    alone. No answer in time blocks.
    """

    entities: dict[PresidioEntity, Literal["block", "redact", "flag"]] = Field(min_length=1)
    score: Annotated[float, Field(ge=0, le=1)] = 0.4
    language: Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")] = "en"
    model: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,79}$")] | None = None
    timeout: Duration = "2s"


class Guard(Strict):
    """One side of a profile: a cap in characters and the detectors, in order; then what looks at text elsewhere."""

    max_chars: Annotated[int, Field(ge=1, le=1_000_000)] = 16_000
    detectors: list[Detector] = []
    presidio: PresidioCheck | None = None
    bedrock: BedrockCheck | None = None


class Profile(Strict):
    """A policy profile's guardrails: on what comes in and on what goes out."""

    input: Guard = Guard()
    output: Guard = Guard(max_chars=100_000)


Guardrails = dict[Name, Profile]


# ---------------------------------------------------------------- access


class FileRef(Strict):
    """A file of the source that travels as a layer of its own."""

    path: RelativePath
    digest: Digest


class AccessCase(Strict):
    """An example that the policies must decide so; run at build and whenever the bundle is assembled."""

    name: str = Field(min_length=1, max_length=200)
    task: Name
    tenant: str
    role: str
    scopes: list[Name] = []
    profile: Name
    resource_tenant: str | None = None
    expect: Literal["allow", "deny"]


class Access(Strict):
    """Cedar policies, their schema, and the cases that prove them."""

    policies: list[FileRef] = Field(min_length=1)
    schema_: FileRef = Field(alias="schema")
    cases: list[AccessCase] = Field(min_length=2)


# ---------------------------------------------------------------- output and evaluation


class Output(Strict):
    """The form of a task's answer.

    ``schema`` is JSON Schema 2020-12, whole; ``repair`` is how many times a model that missed it is asked again.
    """

    format: Literal["structured_json", "text"] = "text"
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    repair: Annotated[int, Field(ge=0, le=3)] = 1

    @model_validator(mode="after")
    def _schema_for_json(self) -> Output:
        if (self.format == "structured_json") != (self.schema_ is not None):
            raise ValueError("format structured_json needs 'schema', and only it may have one")
        return self


Outputs = dict[Name, Output]


class Evaluation(Strict):
    """The suites this bundle is measured by; the gate decides which of them are required."""

    suites: list[Name] = []
