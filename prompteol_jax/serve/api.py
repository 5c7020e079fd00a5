"""OpenAI's embeddings API: what a request may say, and what an answer and an error look like.

Everything here is a function of bytes and numbers: no network, no device.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import orjson
from jaxtyping import Float

FIELDS: Final = ("input", "model", "encoding_format", "dimensions", "user")
FORMATS: Final = ("float", "base64")
TOKEN_IDS: Final = "input holds token ids; send texts (LangChain: check_embedding_ctx_length=False)"


class ApiError(Exception):
    """An answer that is not 200.

    Attributes:
        kind, code, param: `error.type`, `error.code` and `error.param` of the body.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Return the body of the answer."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": error})


def unavailable(code: str, message: str, seconds: int | float) -> ApiError:
    """Return a 503 that says when to try again."""
    headers = {"retry-after": str(max(1, round(seconds)))}
    return ApiError(503, message, kind="server_error", code=code, headers=headers)


@dataclass(frozen=True)
class Request:
    """A valid request.

    Attributes:
        single: the input was one string.
        dimensions: numbers of a vector to return, the first ones; None for all.
    """

    texts: list[str]
    model: str
    format: Literal["float", "base64"]
    dimensions: int | None


@dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        widths: numbers of a vector, by the name of what is served; the first is the default.
        texts: most texts of a request.
    """

    widths: Mapping[str, int]
    texts: int


def read_request(body: bytes, limits: Limits) -> Request:
    """Read the body of a request.

    Raises: ApiError 400 for anything that is not as documented, 404 for another model.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is a JSON {type(fields).__name__}, expected an object")
    unknown = sorted(set(fields) - set(FIELDS))
    if unknown:
        raise ApiError(
            400,
            f"unknown field {unknown[0]!r}; allowed: {', '.join(FIELDS)}",
            param=unknown[0][:100],
        )
    texts = _texts(fields, limits.texts)
    model = fields.get("model", next(iter(limits.widths)))
    if not isinstance(model, str) or model not in limits.widths:
        raise ApiError(
            404,
            f"model {str(model)[:100]!r} is not served; served: {', '.join(limits.widths)}",
            code="model_not_found",
            param="model",
        )
    format_ = fields.get("encoding_format") or "float"
    if format_ not in FORMATS:
        raise ApiError(
            400,
            f"encoding_format {str(format_)[:100]!r} is not one of {', '.join(FORMATS)}",
            param="encoding_format",
        )
    return Request(
        texts, model, format_, _dimensions(fields.get("dimensions"), limits.widths[model])
    )


def _texts(fields: Mapping[str, Any], most: int) -> list[str]:
    given = fields.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list):
        kind = "missing" if given is None else f"{type(given).__name__}"
        raise ApiError(
            400, f"input is {kind}, expected a string or a list of strings", param="input"
        )
    if not texts:
        raise ApiError(400, "input is an empty list; send 1 text or more", param="input")
    first = texts[0]
    if isinstance(first, int) or (
        isinstance(first, list) and all(isinstance(i, int) for i in first)
    ):
        raise ApiError(400, TOKEN_IDS, code="token_ids", param="input")
    if len(texts) > most:
        raise ApiError(
            400, f"input has {len(texts)} texts, the limit is {most}; send less", param="input"
        )
    for n, text in enumerate(texts):
        if not isinstance(text, str):
            raise ApiError(400, f"input[{n}] is {type(text).__name__}, not a string", param="input")
    return texts


def _dimensions(given: Any, width: int) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= width:
        raise ApiError(
            400, f"dimensions {str(given)[:100]} is not from 1 to {width}", param="dimensions"
        )
    return given


def shape_vectors(
    z_nD: Float[np.ndarray, "n D"], dimensions: int | None, *, normalize: bool
) -> Float[np.ndarray, "n d"]:
    """Return the first `dimensions` numbers of each vector, scaled to length one if asked for."""
    z_nd = np.ascontiguousarray(z_nD[:, :dimensions], np.float32)
    if normalize:
        # Rows are divided together: the norm of a single vector would have other bits.
        z_nd = z_nd / np.linalg.norm(z_nd, axis=1, keepdims=True)
    return z_nd


def answer(request: Request, z_nd: Float[np.ndarray, "n d"], tokens: int) -> bytes:
    """Return the body of an answer; `tokens` counts the ids of the whole prompts."""
    embeddings: Iterable[Any] = z_nd
    if request.format == "base64":
        embeddings = [base64.b64encode(z.astype("<f4").tobytes()).decode() for z in z_nd]
    data = [
        {"object": "embedding", "index": n, "embedding": embedding}
        for n, embedding in enumerate(embeddings)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    body = {"object": "list", "data": data, "model": request.model, "usage": usage}
    return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
