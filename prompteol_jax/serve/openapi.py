"""The server's description in the form of OpenAPI 3.1, for clients and for fuzzers."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from prompteol_jax.serve import api


def document(most_texts: int) -> dict[str, Any]:
    """Return the description of a server that takes so many texts in a request."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "prompteol serve", "version": metadata.version("prompteol-jax")},
        "paths": {
            "/v1/embeddings": {"post": _post("Vectors of texts.", _ANSWER)},
            "/words": {"post": _post("The likeliest next tokens after each prompt.", _WORDS)},
            "/v1/models": {"get": _get("The names that are served.", _MODELS)},
            "/health": {"get": _get("Whether requests are answered.", _HEALTH, "503")},
        },
        "components": {"schemas": {"Request": _request(most_texts), "Error": _ERROR}},
    }


def _request(most_texts: int) -> dict[str, Any]:
    text = {"type": "string"}
    texts = {"type": "array", "items": text, "minItems": 1, "maxItems": most_texts}
    fields = {
        "input": {"oneOf": [text, texts]},
        "model": text,
        "encoding_format": {"enum": list(api.FORMATS)},
        "dimensions": {"type": "integer", "minimum": 1},
        "user": text,
    }
    return _object(fields, required=["input"]) | {"additionalProperties": False}


def _object(fields: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": required or list(fields)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _content(schema: dict[str, Any], text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _get(text: str, schema: dict[str, Any], *more: str) -> dict[str, Any]:
    answers = {status: _content(schema, text) for status in ("200", *more)}
    return {"summary": text, "responses": answers}


def _post(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    error = _content({"$ref": "#/components/schemas/Error"}, "Why there is no answer.")
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/Request"}}}
    refusals = dict.fromkeys(("400", "401", "404", "413", "429", "500", "503"), error)
    return {
        "summary": text,
        "requestBody": {"required": True, "content": body},
        "responses": {"200": _content(schema, text), **refusals},
    }


_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_ERROR = _object(
    {"error": _object({"message": _TEXT, "type": _TEXT, "param": _MAYBE, "code": _MAYBE})}
)
_VECTOR = {"oneOf": [_list({"type": "number"}), _TEXT]}
_ANSWER = _object(
    {
        "object": {"const": "list"},
        "data": _list(
            _object({"object": {"const": "embedding"}, "index": _COUNT, "embedding": _VECTOR})
        ),
        "model": _TEXT,
        "usage": _object({"prompt_tokens": _COUNT, "total_tokens": _COUNT}),
    }
)
_WORDS = _object(
    {"data": _list(_list(_object({"word": _TEXT, "probability": {"type": "number"}})))}
)
_MODELS = _object(
    {
        "object": {"const": "list"},
        "data": _list(
            _object(
                {"id": _TEXT, "object": {"const": "model"}, "owned_by": _TEXT}
                | {"prompteol_bits": _MAYBE}
            )
        ),
    }
)
_HEALTH = _object({"status": _TEXT})
