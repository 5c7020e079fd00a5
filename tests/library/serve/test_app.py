"""Each answer has its status, its form and its reason, and the server goes on after each."""

from __future__ import annotations

import collections
import json
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompteol_jax.encoding.batching import Sentence
from prompteol_jax.errors import NotFinite
from prompteol_jax.serve.api import ApiError
from prompteol_jax.serve.app import Server, Settings, make_app
from prompteol_jax.serve.engine import Engine, Prompts
from prompteol_jax.serve.engines import Engines

testclient = pytest.importorskip("starlette.testclient")
URL = "/v1/embeddings"


class Buckets:
    """One bucket."""

    lengths = (8,)


class Lengths(Engine):
    """An engine without a model: a vector is a text's length; `gate` holds the device up."""

    def __init__(self):
        self.width, self.bits, self.shapes, self.buckets = 3, "0123456789abcdef", [1], Buckets()
        self.gate, self.error, self.launches = threading.Event(), None, 0
        self.gate.set()

    def prompts(self, texts):
        long = np.array([len(text) > 100 for text in texts])
        ids = [np.array([ord(c) for c in text], np.int32) for text in texts]
        items = [(0, Sentence(n, own, True)) for n, own in enumerate(ids)]
        return Prompts(items, list(range(len(texts))), long, sum(map(len, texts)))

    def finish(self, prompts, z_nD):
        return z_nD

    def refuse_long(self, prompts):
        if prompts.truncated.any():
            raise ApiError(400, "input[0] is too long")

    def refuse_not_finite(self, z_nD):
        if not np.isfinite(z_nD).all():
            raise NotFinite("1 vectors are not finite, the first that of 'input[0]'")

    def bucket(self, item):
        return 0, 0, item[1].shared

    def sizes(self, bucket):
        return [1, 2, 4]

    def holders(self, bucket):
        return [bucket]

    def cost(self, bucket, rows):
        return 10.0 + rows

    def launch(self, bucket, items):
        self.launches += 1
        if self.error:
            error, self.error = self.error, None
            raise error
        return items

    def fetch(self, items):
        assert self.gate.wait(20)
        texts = ["".join(map(chr, sentence.ids)) for _, sentence in items]
        value = [np.nan if text == "nan" else len(text) + 1.0 for text in texts]
        return np.array([[v, 0, v] for v in value], np.float32)

    def words(self, z_nD, k):
        return [[{"word": "cat", "probability": 0.5}] for _ in z_nD]


@pytest.fixture
def served():
    """A server that is ready, its engine, and a client."""
    servers = []

    def start(**settings):
        server = Server(Settings(("m",), **settings))
        engine = Lengths()
        server.open(Engines(dict.fromkeys(server.settings.models, engine)))
        servers.append((server, engine))
        return server, engine, testclient.TestClient(make_app(server))

    yield start
    for server, engine in servers:
        engine.gate.set()
        server.batcher.close()


def test_vectors_come_back_in_order_of_unit_length_with_the_name_of_their_bits(served):
    _, _, client = served()
    reply = client.post(URL, json={"input": ["a", "bb", ""], "model": "m"})
    assert reply.status_code == 200
    assert reply.headers["x-prompteol-bits"] == "0123456789abcdef"
    assert {"x-request-id", "x-queue-ms", "x-device-ms"} <= set(reply.headers)
    body = reply.json()
    assert [item["index"] for item in body["data"]] == [0, 1, 2]
    np.testing.assert_allclose(body["data"][0]["embedding"], [0.5**0.5, 0, 0.5**0.5], rtol=1e-6)
    assert body["usage"]["prompt_tokens"] == 3


def test_raw_vectors_are_not_scaled(served):
    _, _, client = served(normalize=False)
    assert client.post(URL, json={"input": "bb"}).json()["data"][0]["embedding"] == [3, 0, 3]


ANSWERS = [
    ({"json": {}}, 400, "input is missing"),
    ({"json": {"input": "x" * 101}}, 400, "input[0] is too long"),
    ({"json": {"input": "a", "model": "z"}}, 404, "model 'z' is not served"),
    ({"content": b"x" * 3000}, 413, "larger than 2048 bytes"),
    ({"json": {"input": "nan"}}, 500, "not finite, the first that of 'input[0]'"),
]


@pytest.mark.parametrize(("sent", "status", "message"), ANSWERS)
def test_a_refusal_says_why_and_the_server_goes_on(served, sent, status, message):
    server, _, client = served(body_bytes=2048)
    reply = client.post(URL, **sent)
    assert reply.status_code == status
    assert message in reply.json()["error"]["message"]
    assert client.post(URL, json={"input": "a"}).status_code == 200
    assert server.in_flight == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", URL, 405), ("POST", "/health", 405), ("GET", "/x", 404)]
)
def test_other_paths_and_methods_are_answered_in_the_same_form(served, method, path, status):
    _, _, client = served()
    reply = client.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("header", "status"),
    [({}, 401), ({"authorization": "Bearer no"}, 401), ({"authorization": "Bearer k2"}, 200)],
)
def test_a_key_is_asked_for_where_there_are_keys_and_never_logged(served, caplog, header, status):
    _, _, client = served(keys=("k1", "k2"))
    with caplog.at_level("DEBUG"):
        reply = client.post(URL, json={"input": "a"}, headers=header)
    assert reply.status_code == status
    assert ("www-authenticate" in reply.headers) == (status == 401)
    assert "k2" not in caplog.text
    assert client.get("/health").status_code == 200


def test_a_server_answers_503_before_it_is_warm_and_while_it_drains(served):
    starting = testclient.TestClient(make_app(Server(Settings(("m",)))))
    server, _, client = served()
    server.drain()
    for one, code in ((starting, "starting"), (client, "draining")):
        reply = one.post(URL, json={"input": "a"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, code)
        assert int(reply.headers["retry-after"]) >= 1
        assert one.get("/health").status_code == 503
        assert one.get("/health/live").status_code == 200


def test_more_texts_than_may_wait_are_refused_with_a_time_and_none_is_lost(served):
    server, engine, client = served(waiting=8)
    engine.gate.clear()
    replies = []

    def send():
        replies.append(client.post(URL, json={"input": ["a", "b"]}))

    threads = [threading.Thread(target=send) for _ in range(12)]
    for thread in threads:
        thread.start()
    threads[0].join(0.5)
    assert server.in_flight <= 8
    engine.gate.set()
    for thread in threads:
        thread.join(20)
    codes = sorted(reply.status_code for reply in replies)
    assert len(codes) == 12
    assert set(codes) <= {200, 429}
    assert codes.count(200) >= 4
    assert all(int(r.headers["retry-after"]) >= 1 for r in replies if r.status_code == 429)
    assert server.in_flight == 0


def test_a_device_that_fails_once_is_500_and_one_that_ends_is_503(served):
    _, engine, client = served()
    engine.error = RuntimeError("out of memory")
    assert client.post(URL, json={"input": "a"}).status_code == 500
    assert client.post(URL, json={"input": "a"}).status_code == 200
    engine.sizes = None
    reply = client.post(URL, json={"input": "a"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "device_failed")
    assert client.post(URL, json={"input": "a"}).status_code == 503
    assert "device failed" in client.get("/health").json()["status"]


def test_metrics_models_words_and_the_page_are_there(served):
    _, _, client = served()
    client.post(URL, json={"input": ["a", "bb"]})
    text = client.get("/metrics").text
    assert 'prompteol_requests_total{status="200"} 1.0' in text
    assert "prompteol_texts_total 2.0" in text
    assert client.get("/v1/models").json()["data"][0]["prompteol_bits"] == "0123456789abcdef"
    assert client.post("/words", json={"input": "a"}).json()["data"][0][0]["word"] == "cat"
    assert "<h1>" in client.get("/").text


def test_each_name_has_its_engine_and_its_bits_and_a_batch_is_of_one_engine():
    first, second = Lengths(), Lengths()
    second.bits = "fedcba9876543210"
    server = Server(Settings(("m", "alias", "icl")))
    server.open(Engines({"m": first, "alias": first, "icl": second}))
    client = testclient.TestClient(make_app(server))
    bits = {}
    for name in ("m", "alias", "icl"):
        reply = client.post(URL, json={"input": ["a", "b"], "model": name})
        assert (reply.status_code, reply.json()["model"]) == (200, name)
        bits[name] = reply.headers["x-prompteol-bits"]
    assert bits == {"m": first.bits, "alias": first.bits, "icl": second.bits}
    assert {
        one["id"]: one["prompteol_bits"] for one in client.get("/v1/models").json()["data"]
    } == bits
    assert (first.launches, second.launches) == (2, 1)
    assert 'prompteol_batch_rows_total{bucket="icl 8"} 2.0' in client.get("/metrics").text
    assert client.post(URL, json={"input": "a", "model": "x"}).status_code == 404
    server.batcher.close()


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from(["input", "model", "encoding_format", "dimensions", "user", "x"]),
    JUNK | st.sampled_from(["a", ["a"], "m", "base64", 1]),
    max_size=5,
)
BODIES = st.one_of(
    st.binary(max_size=40),
    JUNK.map(lambda value: json.dumps(value).encode()),
    FIELDS.map(lambda value: json.dumps(value).encode()),
    st.tuples(FIELDS, st.integers(0, 30), st.binary(max_size=2)).map(
        lambda t: json.dumps(t[0]).encode()[: t[1]] + t[2] + json.dumps(t[0]).encode()[t[1] :]
    ),
)


def fuzz(client, examples):
    """Send bodies; the statuses that came back."""
    seen = collections.Counter()

    @settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    @given(BODIES, st.sampled_from([URL, "/words"]))
    def send(body, path):
        reply = client.post(path, content=body)
        seen[reply.status_code] += 1
        assert reply.status_code in (200, 400, 404, 413), (body, reply.text)
        if reply.status_code != 200:
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    send()
    return seen


def test_a_malformed_body_is_answered_with_a_reason(served):
    server, _, client = served(body_bytes=2048)
    seen = fuzz(client, 200)
    assert seen[400] > 50
    assert server.in_flight == 0


@pytest.mark.slow
def test_ten_thousand_malformed_bodies_are_answered_with_a_reason(served):
    server, _, client = served(body_bytes=2048)
    seen = fuzz(client, 10_000)
    assert sum(seen.values()) >= 9_000 and seen[200] > 10 and seen[404] > 10
    assert server.in_flight == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of schemathesis
def test_requests_made_from_the_description_are_answered_as_it_says(served):
    schemathesis = pytest.importorskip("schemathesis")
    server, _, client = served()
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    checks = [schemathesis.checks.not_a_server_error]
    checks += [schemathesis.checks.CHECKS.get_one(name) for name in ("status_code_conformance",)]
    count = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=200, deadline=None, database=None, derandomize=True)
        @given(case=operation.as_strategy())
        def send(case):
            nonlocal count
            count += 1
            case.call_and_validate(checks=checks)

        send()
    assert count > 100
    assert server.in_flight == 0
