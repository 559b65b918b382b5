"""The server's OpenAPI document; its schemas are those of the contract's own types."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from bundlectl import __version__
from bundlectl.model.contract import Answer, Request

_ERROR = {
    "type": "object",
    "required": ["error", "message", "why", "fix"],
    "properties": {
        "error": {"type": "string", "description": "A stable code."},
        "message": {"type": "string", "description": "What happened."},
        "why": {"type": "string"},
        "fix": {"type": "string", "description": "What to do next."},
        "receipt": {"type": "string", "description": "The receipt, where one was written."},
        "fields": {
            "type": "array",
            "description": "For error contract: each field that does not fit.",
            "items": {
                "type": "object",
                "required": ["field", "message"],
                "properties": {"field": {"type": "string"}, "message": {"type": "string"}},
            },
        },
    },
}
_LATER = {"Retry-After": {"description": "When to come back, in seconds.", "schema": {"type": "integer", "minimum": 0}}}
_STATES = {"description": "What is served: app, environment, release, and how polling goes.", "type": "object"}


def openapi() -> dict[str, Any]:
    """Give the document, OpenAPI 3.1."""
    _, defined = models_json_schema(
        [(Request, "validation"), (Answer, "serialization")], ref_template="#/components/schemas/{model}"
    )
    answer, error = _json({"$ref": "#/components/schemas/Answer"}), _json({"$ref": "#/components/schemas/Error"})
    either = _json({"anyOf": [{"$ref": "#/components/schemas/Answer"}, {"$ref": "#/components/schemas/Error"}]})
    answered = {
        "application/json": answer["application/json"],
        "text/event-stream": {
            "schema": {
                "type": "string",
                "description": "Events start {receipt, release}, delta {text}; then done (Answer) or error (Error).",
            }
        },
    }
    responses = {
        "200": {"description": "Answered, or refused with no_answer or output_blocked.", "content": answered},
        "400": {"description": "The body is not JSON, or x-bundle is no digest.", "content": error},
        "401": {"description": "No API key or token that is known here.", "content": error},
        "403": {"description": "Refused with access_denied, or x-bundle from who may not choose.", "content": either},
        "406": {"description": "x-app or x-bundle names what is not served here.", "content": error},
        "408": {"description": "The body was not there within ten seconds.", "content": error},
        "409": {"description": "x-bundle names the rollback target, which does not verify.", "content": error},
        "413": {"description": "The body is larger than 1 MiB.", "content": error},
        "422": {"description": "Does not fit the contract, or refused with input_blocked.", "content": either},
        "429": {
            "description": "Refused with limited; without Retry-After it never fits the limit.",
            "headers": _LATER,
            "content": answer,
        },
        "431": {"description": "The headers are larger than 32 KiB.", "content": error},
        "503": {
            "description": "Nothing could answer, nothing is loaded, a token cannot be verified or a rollback target "
            "not fetched now, or too many requests are under way (overloaded, with Retry-After).",
            "headers": _LATER,
            "content": error,
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "bundlectl router", "version": __version__},
        "security": [{"bearer": []}, {"key": []}, {}],
        "paths": {
            "/v1/requests": {
                "post": {
                    "summary": "Answer one request.",
                    "operationId": "answer",
                    "parameters": [
                        {
                            "name": "x-app",
                            "in": "header",
                            "description": "Which app, or app:environment, where several served here have the task.",
                            "schema": {"type": "string"},
                        },
                        {
                            "name": "x-bundle",
                            "in": "header",
                            "description": "Answer from this bundle, by callers who may: the digest of the live one "
                            "or of the rollback target; 8 hex digits are enough.",
                            "schema": {"type": "string"},
                        },
                        {
                            "name": "cache-control",
                            "in": "header",
                            "description": "no-store: not from kept answers, nor kept; no-cache: made anew, and kept.",
                            "schema": {"type": "string"},
                        },
                    ],
                    "requestBody": {"required": True, "content": _json({"$ref": "#/components/schemas/Request"})},
                    "responses": responses,
                }
            },
            "/v1/releases": _get("List the releases that are served.", "releases"),
            "/healthz": _get("Say that the process lives.", "health"),
            "/readyz": _get("Say whether a verified release is loaded for every environment.", "ready", "503"),
            "/metrics": {
                "get": {
                    "summary": "What the receipts add up to, and how the server is, in Prometheus' format.",
                    "operationId": "metrics",
                    "security": [],
                    "responses": {
                        "200": {"description": "Metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}
                    },
                }
            },
            "/openapi.json": _get("Give this document.", "openapi"),
        },
        "components": {
            "schemas": {**defined["$defs"], "Error": _ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _get(summary: str, operation: str, *more: str) -> dict[str, Any]:
    reply = {"description": summary, "content": _json(_STATES)}
    return {
        "get": {
            "summary": summary,
            "operationId": operation,
            "security": [],
            "responses": dict.fromkeys(("200", *more), reply),
        }
    }
