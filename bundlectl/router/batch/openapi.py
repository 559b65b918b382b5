"""What the server's OpenAPI document says of batches."""

from __future__ import annotations

from typing import Any, Final

from pydantic.json_schema import models_json_schema

from bundlectl.model.batch import Batch

PATH: Final = "/v1/batches"
LINES: Final = "application/jsonl"


def openapi_paths() -> tuple[dict[str, Any], dict[str, Any]]:
    """Give paths and schemas."""
    _, defined = models_json_schema([(Batch, "serialization")], ref_template="#/components/schemas/{model}")
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    batch = {"application/json": {"schema": {"$ref": "#/components/schemas/Batch"}}}
    lines = {LINES: {"schema": {"type": "string", "description": "JSON Lines."}}}
    refused = {
        "401": {"description": "The caller is not known here.", "content": error},
        "431": {"description": "The headers are larger than 32 KiB.", "content": error},
        "404": {"description": "There is no such batch for this caller.", "content": error},
        "503": {"description": "The book of batches cannot be used now, or no release is loaded.", "content": error},
    }
    named = [{"name": "batch", "in": "path", "required": True, "schema": {"type": "string"}}]
    told = {"200": {"description": "How far it is.", "content": batch}, **refused}
    header = {"in": "header", "schema": {"type": "string"}}
    paths = {
        PATH: {
            "post": {
                "summary": "Hand in a batch: JSON Lines of requests, each with an id.",
                "operationId": "submitBatch",
                "parameters": [{"name": "idempotency-key", **header}, {"name": "x-app", **header}],
                "requestBody": {"required": True, "content": lines},
                "responses": {
                    "200": {"description": "The same key brought the same bytes before.", "content": batch},
                    "201": {"description": "Accepted: all of it is stored.", "content": batch},
                    "400": {"description": "The idempotency key is none.", "content": error},
                    "401": refused["401"],
                    "403": {"description": "Rows claim what the caller may not.", "content": error},
                    "408": {"description": "The body does not come.", "content": error},
                    "409": {"description": "The key came before with another body.", "content": error},
                    "413": {"description": "More than 100,000 rows or 256 MiB.", "content": error},
                    "422": {"description": "Lines cannot be taken; nothing was.", "content": error},
                    "431": refused["431"],
                    "503": refused["503"],
                },
            }
        },
        f"{PATH}/{{batch}}": {
            "get": {"summary": "How far it is.", "operationId": "batch", "parameters": named, "responses": told}
        },
        f"{PATH}/{{batch}}/results": {
            "get": {
                "summary": "The results, in the order of the input.",
                "operationId": "batchResults",
                "parameters": [
                    *named,
                    {"name": "partial", "in": "query", "schema": {"type": "string", "enum": ["true", "false"]}},
                ],
                "responses": {
                    "200": {"description": "A line for each row.", "content": lines},
                    "400": {"description": "partial is neither true nor false.", "content": error},
                    "409": {"description": "It has not ended.", "content": error},
                    **refused,
                },
            }
        },
        f"{PATH}/{{batch}}/cancel": {
            "post": {
                "summary": "Let no row begin any more.",
                "operationId": "cancelBatch",
                "parameters": named,
                "responses": told,
            }
        },
    }
    return paths, defined["$defs"]
