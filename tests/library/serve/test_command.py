"""A served text has the bits of `Embedder.encode`, under any load and until the last request."""

from __future__ import annotations

import base64
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from http_load import Answers, Client, closed_loop
from ports import free_port

from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.serve import api
from prompteol_jax.serve.options import KEYS, read_keys

WORDS = "a man is playing guitar in the park while two dogs run after one red ball".split()


def texts(n):
    """Texts of every length, some of them twice."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(0, 40))) for _ in range(n)]


@pytest.mark.slow
def test_every_answer_has_the_bits_of_encode_and_sigterm_loses_none(served, embedders):
    server = served("--model", "tiny", "--dtype", "float32", "--batch-tokens", "64")
    sentences = texts(120)
    z_nD = embedders("tiny", batch_tokens=64).encode(sentences)
    expected = api.shape_vectors(z_nD, None, normalize=True)
    rng = np.random.default_rng(1)
    groups = [rng.integers(0, len(sentences), rng.integers(1, 9)) for _ in range(150)]

    def ask(group):
        body = {"input": [sentences[n] for n in group], "encoding_format": "base64"}
        status, reply = server.post(body)
        assert status == 200, reply
        return [base64.b64decode(item["embedding"]) for item in reply["data"]]

    with ThreadPoolExecutor(16) as pool:
        for group, answers in zip(groups, pool.map(ask, groups), strict=True):
            assert answers == [expected[n].tobytes() for n in group]
        last = [pool.submit(ask, group) for group in groups[:32]]
        while not any(answer.done() for answer in last):
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        ended = [answer.exception() for answer in last]
    # A request that was admitted is answered; one that came later finds no listener or a 503.
    assert any(error is None for error in ended)
    assert all(error is None or refused(error) for error in ended), ended
    assert server.process.wait(60) == 0


@pytest.mark.slow
def test_each_method_of_one_model_has_its_name_and_the_bits_of_encode(served, embedders, tmp_path):
    record = {
        "name": "mine",
        "prompts": ["eol", {"template": "none", "transform": {"kind": "chunks", "words": 4}}],
        "post": [{"kind": "truncate", "dims": 24}, {"kind": "normalize"}],
    }
    (tmp_path / "mine.json").write_text(json.dumps(record))
    flags = ["--batch-tokens", "64", "--max-tokens", "64", "--truncate", "end", "--raw"]
    also = f"--also-method=mine={tmp_path / 'mine.json'}"
    server = served("--model", "tiny", "--dtype", "float32", *flags, also)
    sentences, how = texts(24), {"batch_tokens": 64, "max_tokens": 64}
    expected = {
        "tiny": embedders("tiny", **how).encode(sentences),
        "mine": embedders("tiny", method=tmp_path / "mine.json", **how).encode(sentences),
    }
    assert expected["mine"].shape == (24, 24)
    assert server.post({"input": "a", "model": "mine", "dimensions": 25})[0] == 400
    rng = np.random.default_rng(2)
    groups = [rng.integers(0, len(sentences), rng.integers(1, 6)) for _ in range(30)]

    def ask(group):
        name = list(expected)[group.sum() % len(expected)]
        body = {"input": [sentences[n] for n in group], "encoding_format": "base64", "model": name}
        status, reply = server.post(body)
        assert status == 200, reply
        return name, [base64.b64decode(item["embedding"]) for item in reply["data"]]

    with ThreadPoolExecutor(8) as pool:
        for group, (name, answers) in zip(groups, pool.map(ask, groups), strict=True):
            assert answers == [expected[name][n].tobytes() for n in group], name
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


@pytest.mark.slow
def test_no_answer_of_five_thousand_changes_under_a_mixed_load(served, embedders):
    flags = ["--dtype", "float32", "--batch-tokens", "512", "--max-tokens", "64"]
    server = served("--model", "tiny", *flags, "--truncate", "end")
    sentences = texts(256)
    z_nD = embedders("tiny", batch_tokens=512, max_tokens=64).encode(sentences)
    z_nD = api.shape_vectors(z_nD, None, normalize=True)
    answers = Answers({text: z.tobytes() for text, z in zip(sentences, z_nD, strict=True)})
    draw = random.Random(3)
    clients = [Client(server.url, "tiny") for _ in range(64)]
    closed_loop(clients[:1], [[text] for text in sentences], answers)  # alone
    closed_loop(clients[:1], [draw.choices(sentences, k=2048)], answers)
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            Client(server.url, "tiny").leave(draw.choices(sentences, k=8))
            time.sleep(0.01)

    leaving = threading.Thread(target=come_and_go)
    leaving.start()
    mixed = [draw.choices(sentences, k=draw.randint(1, 12)) for _ in range(500)]
    closed_loop(clients, mixed, answers)
    stop.set()
    leaving.join()
    status, body = clients[0].send(input=sentences[:50], encoding_format="float")
    numbers = np.array([one["embedding"] for one in body["data"]], np.float32)
    assert (status, numbers.tobytes()) == (200, z_nD[:50].tobytes())
    assert answers.texts >= 5000
    assert answers.changed == 0
    for client in clients:
        client.close()
    with urllib.request.urlopen(f"{server.url}/metrics") as reply:
        dropped = re.search(r"(?m)^prompteol_dropped_texts_total (\S+)", reply.read().decode())
    assert float(dropped[1]) > 0


@pytest.mark.slow
def test_memory_is_flat_over_twenty_thousand_requests(served):
    flags = ["--dtype", "float32", "--batch-tokens", "64", "--max-tokens", "64"]
    server = served("--model", "tiny", *flags, "--truncate", "end")
    sentences, clients = texts(100), [Client(server.url, "tiny") for _ in range(8)]

    def resident_mb():
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def send(count):
        closed_loop(clients, ([sentences[n % 100]] for n in range(count)), Answers())
        return resident_mb()

    first, last = send(2_000), send(18_000)
    for client in clients:
        client.close()
    assert last - first < 20, f"{first:.0f} MB after 2,000 requests, {last:.0f} after 20,000"


@pytest.mark.slow
def test_a_server_is_healthy_once_it_is_warm_and_no_sooner(served):
    port = free_port()
    flags = ["--max-tokens", "64", "--port", str(port)]
    server, statuses = served("--model", "tiny", *flags, wait=False), []
    while 200 not in statuses:
        was_ready = server.ready.is_set()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
                statuses.append(reply.status)
        except urllib.error.HTTPError as error:
            assert not was_ready
            statuses.append(error.code)
        except OSError:
            assert server.process.poll() is None, "".join(server.lines)
        time.sleep(0.02)
    assert server.ready.wait(5)
    assert statuses.count(503) > 3
    assert set(statuses) == {200, 503}


def refused(error):
    """The connection was refused or closed before the request was read, or the answer is 503."""
    return isinstance(error, OSError | urllib.error.URLError) or "draining" in str(error)


@pytest.mark.slow
def test_a_model_that_cannot_be_loaded_ends_the_server_with_one_line():
    command = [sys.executable, "-m", "prompteol_jax.cli", "serve", "--port", "0", "--model"]
    done = subprocess.run([*command, "/missing"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "prompteol: error: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_keys_come_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv(KEYS, "a, b,")
    assert read_keys(None) == ("a", "b")
    file = tmp_path / "keys"
    file.write_text("k1\n\n k2 \n")
    assert read_keys(file) == ("k1", "k2")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no key"):
        read_keys(file)
    with pytest.raises(NotFound, match="--api-key-file"):
        read_keys(tmp_path / "none")
