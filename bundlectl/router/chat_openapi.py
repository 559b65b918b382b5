"""What the OpenAPI document says of the endpoints in OpenAI's wire format."""

from __future__ import annotations

from typing import Any, Final

_ERROR_SCHEMA: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}


def chat_paths(chat: str, models: str, request: dict[str, Any]) -> dict[str, Any]:
    """Give the paths, by their addresses and the schema of a request."""
    error = {"description": "An error in OpenAI's form.", "content": {"application/json": {"schema": _ERROR_SCHEMA}}}
    any_object = {"application/json": {"schema": {"type": "object"}}}
    return {
        chat: {
            "post": {
                "summary": "Ask a task in OpenAI's wire format; model is app/task.",
                "requestBody": {"required": True, "content": {"application/json": {"schema": _placed(request)}}},
                "responses": {
                    "200": {
                        "description": "A chat completion, or its chunks as server-sent events.",
                        "content": {**any_object, "text/event-stream": {"schema": {"type": "string"}}},
                    },
                    "default": error,
                },
            }
        },
        models: {
            "get": {
                "summary": "The tasks that the caller can ask.",
                "responses": {"200": {"description": "A list.", "content": any_object}, "default": error},
            }
        },
        f"{models}/{{model}}": {
            "get": {
                "summary": "One of them.",
                "parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}],
                "responses": {"200": {"description": "A model.", "content": any_object}, "default": error},
            }
        },
    }


def _placed(schema: dict[str, Any]) -> dict[str, Any]:
    """Give a schema with its parts in place: references would lead out of the document's own parts."""
    parts = schema.pop("$defs")

    def placed(value: Any) -> Any:
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).rpartition("/")[2]
            return placed(parts[name]) if name else {key: placed(item) for key, item in value.items()}
        return [placed(item) for item in value] if isinstance(value, list) else value

    made: dict[str, Any] = placed(schema)
    return made
