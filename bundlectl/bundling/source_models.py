"""What the files of a bundle's source hold, where that differs from the built components.

``bundle.yaml`` names files by path where a component holds their content; everything else has the types of
``bundlectl.model.components``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from bundlectl.model.components import (
    AccessCase,
    Embedding,
    Evaluation,
    Model,
    Profile,
    Retrieval,
    Rollback,
    Route,
    Rule,
)
from bundlectl.model.types import Name, RelativePath, StoreName, Strict


class SourceApplication(Strict):
    """The product version this bundle is made for, as quoted text; not interpreted."""

    version: str = Field(min_length=1, max_length=100)


class SourceOutput(Strict):
    """The form of a task's answer; ``schema`` is the path of a JSON Schema file."""

    format: Literal["structured_json", "text"] = "text"
    schema_: RelativePath | None = Field(default=None, alias="schema")
    repair: Annotated[int, Field(ge=0, le=3)] = 1

    @model_validator(mode="after")
    def _schema_for_json(self) -> SourceOutput:
        if (self.format == "structured_json") != (self.schema_ is not None):
            raise ValueError("format structured_json needs 'schema' (the path of a JSON Schema), and only it has one")
        return self


class SourceTask(Strict):
    """One workflow; ``prompt`` is the path of a prompt file, whose name without ending is the prompt's name."""

    prompt: RelativePath
    retrieval: Name | None = None
    scopes: list[Name] = []
    profiles: list[Name] = Field(min_length=1)
    output: SourceOutput = SourceOutput()


class SourceRoutes(Strict):
    """The routes by name and, beside them, ``select``: the rules that choose; the first that matches wins."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Route] = Field(init=False)

    select: list[Rule] = Field(min_length=1)

    @property
    def routes(self) -> dict[str, Route]:
        """The routes by name."""
        return self.__pydantic_extra__


class SourceAccess(Strict):
    """Where the access rules are; what is left out has its usual place."""

    policies: list[RelativePath] | None = Field(default=None, min_length=1)
    schema_: RelativePath = Field(default="access/schema.cedarschema", alias="schema")
    cases: RelativePath = "access/cases.yaml"


class AccessCases(Strict):
    """The cases file: examples that the policies must decide as they say."""

    apiVersion: Literal["bundlectl/v1"]
    kind: Literal["AccessCases"]
    cases: list[AccessCase] = Field(min_length=2)


class SourceBundle(Strict):
    """``bundle.yaml``."""

    apiVersion: Literal["bundlectl/v1"]
    app: StoreName
    application: SourceApplication
    tasks: dict[Name, SourceTask] = Field(min_length=1)
    models: dict[Name, Model] = Field(min_length=1)
    routes: SourceRoutes
    embedding: Embedding | None = None
    retrieval: dict[Name, Retrieval] = {}
    guardrails: dict[Name, Profile] = Field(min_length=1)
    access: SourceAccess = SourceAccess()
    evaluation: Evaluation = Evaluation()
    rollback: Rollback = Rollback()
