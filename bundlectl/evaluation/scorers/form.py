"""The scorer for form: json_schema."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
from pydantic import Field

from bundlectl.evaluation.scorers.score import Sample, Score, measured, unmeasured
from bundlectl.model.suite import Case
from bundlectl.model.types import Strict


class SchemaOptions(Strict):
    """``schema``: JSON Schema 2020-12 to hold against the output; left out, the bundle's own for the task."""

    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class JsonSchema:
    """1 when the output fits the schema and no fallback had to give it; else 0.

    The reason names the place in the schema, never the value.
    """

    def __init__(self, schema: dict[str, Any] | None) -> None:
        self._validator = None if schema is None else compile_schema(schema)

    def applies(self, case: Case) -> bool:
        """Cases that want an answer (no refusal is expected), and not as plain text."""
        return not case.expected.refusal and case.response_format != "text"

    def score(self, sample: Sample) -> Score:
        """Validate."""
        if self._validator is None:
            return unmeasured("neither the bundle's task nor the scorer's options have a schema")
        if sample.answer.refused is not None:
            return measured(0, f"refused: {sample.answer.refused.code}")
        if sample.answer.degraded is not None:
            return measured(0, "a fallback answered")
        first = next(iter(self._validator.iter_errors(sample.answer.output)), None)
        if first is None:
            return measured(1)
        return measured(0, "does not fit /" + "/".join(str(part) for part in first.schema_path))


def compile_schema(schema: dict[str, Any]) -> Any:
    """Compile a JSON Schema 2020-12. References to other documents are refused, never fetched.

    Raises:
        ValueError: it is no such schema.
    """
    return jsonschema_rs.Draft202012Validator(schema, retriever=_never)


def _never(uri: str) -> Any:
    raise ValueError(f"a schema may not refer to another document: {uri}")
