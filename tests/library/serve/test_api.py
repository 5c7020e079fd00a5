"""Requests are read strictly, and answers and errors have OpenAI's form."""

from __future__ import annotations

import base64

import numpy as np
import orjson
import pytest

from prompteol_jax.serve import api
from prompteol_jax.serve.api import ApiError, Limits

pytestmark = pytest.mark.unit

LIMITS = Limits({"m": 8, "other": 4}, texts=3)
BAD = [
    (b"", 400, "the body is not JSON"),
    (b"\xff", 400, "the body is not JSON"),
    (b"[" * 10_000, 400, "the body is not JSON"),
    (b"[1]", 400, "the body is a JSON list, expected an object"),
    ({}, 400, "input is missing, expected a string or a list of strings"),
    ({"input": None}, 400, "input is missing"),
    ({"input": {}}, 400, "input is dict"),
    ({"input": []}, 400, "input is an empty list"),
    ({"input": ["a", 1]}, 400, "input[1] is int, not a string"),
    ({"input": ["a", None]}, 400, "input[1] is NoneType, not a string"),
    ({"input": ["a", ["b"]]}, 400, "input[1] is list, not a string"),
    ({"input": list("abcd")}, 400, "input has 4 texts, the limit is 3"),
    ({"input": "a", "what": 1}, 400, "unknown field 'what'; allowed: input, model"),
    ({"input": "a", "model": "x"}, 404, "model 'x' is not served; served: m, other"),
    ({"input": "a", "model": 7}, 404, "model '7' is not served"),
    ({"input": "a", "encoding_format": "hex"}, 400, "'hex' is not one of float, base64"),
    ({"input": "a", "encoding_format": ["float"]}, 400, "is not one of float, base64"),
    ({"input": "a", "dimensions": 9}, 400, "dimensions 9 is not from 1 to 8"),
    ({"input": "a", "model": "other", "dimensions": 5}, 400, "5 is not from 1 to 4"),
    ({"input": "a", "dimensions": 0}, 400, "dimensions 0 is not from 1 to 8"),
    ({"input": "a", "dimensions": True}, 400, "dimensions True is not from 1 to 8"),
    ({"input": "a", "dimensions": 1.0}, 400, "dimensions 1.0 is not from 1 to 8"),
]


def sent(body):
    return body if isinstance(body, bytes) else orjson.dumps(body)


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_a_wrong_request_is_refused_with_a_reason(body, status, message):
    with pytest.raises(ApiError) as refused:
        api.read_request(sent(body), LIMITS)
    assert refused.value.status == status
    assert message in str(refused.value)
    error = orjson.loads(refused.value.body())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]], [[]]])
def test_token_ids_are_refused_with_what_langchain_needs(ids):
    with pytest.raises(ApiError, match="check_embedding_ctx_length=False") as refused:
        api.read_request(sent({"input": ids}), LIMITS)
    assert refused.value.code == "token_ids"


def test_what_is_left_out_has_a_default():
    request = api.read_request(sent({"input": "a", "user": "u", "dimensions": None}), LIMITS)
    assert request == api.Request(["a"], "m", "float", None)
    assert api.read_request(sent({"input": ["", "b"]}), LIMITS).texts == ["", "b"]


def test_floats_and_base64_hold_the_same_bits():
    z_nd = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    answers = {}
    for kind in api.FORMATS:
        request = api.Request(["a"] * 3, "m", kind, None)
        answers[kind] = orjson.loads(api.answer(request, z_nd, 7))
    assert answers["float"]["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    floats = [item["embedding"] for item in answers["float"]["data"]]
    packed = [base64.b64decode(item["embedding"]) for item in answers["base64"]["data"]]
    np.testing.assert_array_equal(np.array(floats, np.float32), z_nd)
    np.testing.assert_array_equal(np.array([np.frombuffer(p, "<f4") for p in packed]), z_nd)
    assert [item["index"] for item in answers["float"]["data"]] == [0, 1, 2]


def test_dimensions_are_the_first_ones_scaled_again():
    z_nD = np.array([[3.0, 4.0, 12.0]], np.float32)
    np.testing.assert_allclose(api.shape_vectors(z_nD, 2, normalize=True), [[0.6, 0.8]])
    np.testing.assert_array_equal(api.shape_vectors(z_nD, 2, normalize=False), [[3.0, 4.0]])


def test_a_vector_has_the_same_bits_alone_and_among_others():
    z_nD = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    together = api.shape_vectors(z_nD, None, normalize=True)
    alone = [api.shape_vectors(z_nD[n : n + 1], None, normalize=True)[0] for n in range(64)]
    np.testing.assert_array_equal(together, np.stack(alone))
