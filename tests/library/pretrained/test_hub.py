"""Laws of hub: only what is needed is fetched, and every way to fail has a message of its own.

A stand-in hub serves real HTTP on localhost. `huggingface_hub` reads its settings when it is
imported, so each call runs in a process of its own.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prompteol_jax.errors import NotFound
from prompteol_jax.pretrained import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = {
    "config.json": b"{}",
    "tokenizer.json": b"{1}",
    "vocab.json": b"{2}",
    "merges.txt": b"m",
    "tokenizer.model": b"t",
    "modeling.py": b"raise SystemExit",
    "README.md": b"r",
    "flax_model.msgpack": b"x",
    "flax_model.msgpack.index.json": b"{}",
    "original/params.json": b"{}",
    "original/model.safetensors": b"o",
}
SIDE = {"config.json", "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"}
REPOS = {
    "acme/both": {"model.safetensors": b"s", "pytorch_model.bin": b"b"},
    "acme/bin": {"pytorch_model.bin": b"b", "training_args.bin": b"t"},
    "acme/shards": {
        "model-00001-of-00002.safetensors": b"1" * 1000,
        "model-00002-of-00002.safetensors": b"2" * 1000,
        "model.safetensors.index.json": b'{"weight_map": {}}',
        "consolidated.safetensors": b"c",
        "pytorch_model-00001-of-00001.bin": b"b",
        "pytorch_model.bin.index.json": b"{}",
    },
    "acme/flax": {},
    "acme/nli": {"nli_for_simcse.csv": b"sent0,sent1\na,b\n"},
    "acme/adapter": {"adapter_config.json": b"{}", "adapter_model.bin": b"a"},
    "acme/large": {"model.safetensors": bytes(range(256)) * 4000},
}
FILES = {repo: TEXTS | files for repo, files in REPOS.items()}
FILES["acme/adapter"].pop("config.json")
REVISIONS = ("main", "v1", COMMIT)


class Hub(ThreadingHTTPServer):
    """The endpoints of the Hugging Face hub that a download uses."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.sent: list[str] = []
        self.cut_once: set[str] = set()
        self.broken: set[str] = set()
        self.tokens: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond(body=False)

    def do_GET(self) -> None:
        self.respond(body=True)

    def respond(self, *, body: bool) -> None:
        self.server.tokens.append(self.headers.get("Authorization"))
        path = self.path.partition("?")[0]
        listing = re.fullmatch(r"/api/models/(\w+/[\w-]+)(?:/(revision|tree)/([^/]+))?.*", path)
        file = re.fullmatch(r"/(?:datasets/)?(\w+/[\w-]+)/resolve/([^/]+)/(.+)", path)
        repo, revision = (listing[1], listing[3]) if listing else (file[1], file[2])
        if repo.startswith("locked/"):
            self.fail(401, None)
        elif repo == "acme/gated":
            self.fail(403, "GatedRepo")
        elif repo not in FILES:
            self.fail(404, "RepoNotFound")
        elif revision not in (None, *REVISIONS):
            self.fail(404, "RevisionNotFound")
        elif listing:
            self.send_listing(repo, tree=listing[2] == "tree")
        elif file[3] not in FILES[repo]:
            self.fail(404, "EntryNotFound")
        else:
            self.send_file(FILES[repo][file[3]], file[3], body=body)

    def fail(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def send_listing(self, repo: str, *, tree: bool) -> None:
        files = FILES[repo]
        if tree:
            answer: Any = [
                {"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                for path, content in files.items()
            ]
        else:
            siblings = [{"rfilename": path} for path in files]
            answer = {"id": repo, "sha": COMMIT, "siblings": siblings}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def send_file(self, content: bytes, name: str, *, body: bool) -> None:
        if body and name in self.server.broken:
            self.fail(500, None)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{etag(content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if not body:
            return
        self.server.sent.append(name)
        part = content[start:]
        if name in self.server.cut_once:
            self.server.cut_once.discard(name)
            part = part[: len(part) // 2]
            self.close_connection = True
        self.wfile.write(part)


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def server() -> Iterator[Hub]:
    with Hub() as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


CALL = """
import json, sys
from prompteol_jax.pretrained import hub
for name, options in json.loads(sys.argv[1]):
    try:
        find = hub.dataset_file if "file" in options else hub.local_folder
        answer = str(find(name, **options))
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
"""


def call(url: str, cache: Path, *names: str, **setting: Any) -> list[str]:
    """What local_folder answers to each name, in a fresh process that uses the stand-in hub."""
    options = {key: setting.pop(key) for key in ("kind", "revision", "file") if key in setting}
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    environment.pop("HF_TOKEN", None)
    calls = json.dumps([(name, options) for name in names])
    run = subprocess.run(
        [sys.executable, "-c", CALL, calls],
        env=environment | setting,
        cwd=cache,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def held(folder: str) -> set[str]:
    root = Path(folder)
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_fetches_one_format_and_the_small_files_but_no_code(server: Hub, tmp_path: Path) -> None:
    both, bins, shards = call(server.url, tmp_path, "acme/both", "acme/bin", "acme/shards")
    assert held(both) == SIDE | {"model.safetensors"}
    assert held(bins) == SIDE | {"pytorch_model.bin"}
    assert held(shards) == SIDE | {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    for name in held(shards):
        assert (Path(shards) / name).read_bytes() == FILES["acme/shards"][name]
    assert "modeling.py" not in server.sent


def test_fetches_an_adapter(server: Hub, tmp_path: Path) -> None:
    (folder,) = call(server.url, tmp_path, "acme/adapter", kind="adapter")
    assert held(folder) >= {"adapter_config.json", "adapter_model.bin"}
    (answer,) = call(server.url, tmp_path, "acme/both", kind="adapter")
    assert answer.startswith(
        "NotFound: the hub repository acme/both lacks adapter_config.json and "
        "adapter_model.safetensors or adapter_model.bin, which this project reads. It holds: README"
    )


def test_a_revision_is_fetched_and_remembered(server: Hub, tmp_path: Path) -> None:
    (folder,) = call(server.url, tmp_path, "acme/bin@v1")
    assert hub.weights_revision(Path(folder)) == COMMIT
    assert call(server.url, tmp_path, "acme/bin", revision="v1") == [folder]
    assert call(server.url, tmp_path, f"acme/bin@{COMMIT}") == [folder]
    (answer,) = call(server.url, tmp_path, "acme/bin@v9")
    assert answer == f"NotFound: {server.url} has acme/bin, but no revision 'v9' of it."


def test_offline_uses_the_cache_alone(server: Hub, tmp_path: Path) -> None:
    (folder,) = call(server.url, tmp_path, "acme/bin")
    asked = len(server.tokens)
    again, other = call(server.url, tmp_path, "acme/bin", "acme/both", HF_HUB_OFFLINE="1")
    assert again == folder
    assert len(server.tokens) == asked
    assert other.startswith("NotFound: no folder acme/both exists, and HF_HUB_OFFLINE is")
    assert "does not hold acme/both. Unset it to download, or give a folder." in other


def test_unknown_repositories_and_denied_ones_differ(server: Hub, tmp_path: Path) -> None:
    names = ("acme/absent", "acme/gated", "locked/private", "acme/flax")
    absent, gated, private, flax = call(server.url, tmp_path, *names)
    assert absent == (
        f"NotFound: no folder acme/absent exists, and {server.url} has no repository of "
        "this name. Check the spelling; for a private one set HF_TOKEN."
    )
    for answer, name in ((gated, "acme/gated"), (private, "locked/private")):
        assert answer.startswith(
            f"PermissionError: {server.url} refuses access to {name} with no HF_TOKEN: it is gated,"
        )
        assert "set HF_TOKEN to a token that may read it, or give a local folder." in answer
    assert flax.startswith(
        "NotFound: the hub repository acme/flax lacks model.safetensors or "
        "pytorch_model.bin, which this project reads. It holds: README.md, config.json"
    )
    assert not server.sent


def test_the_token_is_sent_and_never_shown(server: Hub, tmp_path: Path) -> None:
    (answer,) = call(server.url, tmp_path, "locked/private", HF_TOKEN="hf_secret")
    assert "Bearer hf_secret" in server.tokens
    assert "with the HF_TOKEN in use" in answer
    assert "hf_secret" not in answer


def test_an_unreachable_hub_is_said_to_be(tmp_path: Path) -> None:
    with Hub() as unused:
        url = unused.url
    (answer,) = call(url, tmp_path, "acme/bin")
    assert answer.startswith(f"Unreachable: acme/bin could not be fetched from {url}: ")
    assert "Give a local folder, or set HF_HUB_OFFLINE=1 to use what the cache holds." in answer


def test_a_cut_connection_is_resumed(server: Hub, tmp_path: Path) -> None:
    server.cut_once.add("model.safetensors")
    (folder,) = call(server.url, tmp_path, "acme/large")
    content = (Path(folder) / "model.safetensors").read_bytes()
    assert content == FILES["acme/large"]["model.safetensors"]
    assert not server.cut_once


def test_a_broken_off_download_is_an_error_and_then_completed(server: Hub, tmp_path: Path) -> None:
    server.broken.add("model-00002-of-00002.safetensors")
    (answer,) = call(server.url, tmp_path, "acme/shards")
    assert answer.startswith("Unreachable: acme/shards could not be fetched")
    assert "continues when it is started again" in answer
    server.broken.clear()
    (folder,) = call(server.url, tmp_path, "acme/shards")
    assert server.sent.count("model-00001-of-00002.safetensors") == 1
    assert "model-00002-of-00002.safetensors" in held(folder)


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_folder_is_taken_as_it_is(tmp_path: Path, kind: Any) -> None:
    (tmp_path / hub.CONFIG[kind]).write_text("{}")
    assert hub.local_folder(str(tmp_path), kind=kind) == tmp_path
    assert hub.weights_revision(tmp_path) is None


@pytest.mark.parametrize("find", [hub.local_folder, hub.config_folder])
def test_refuses_the_home_of_an_unknown_user(find: Any) -> None:
    with pytest.raises(NotFound, match="no home folder is known for ~nosuchuser"):
        find("~nosuchuser/model")


def test_a_path_is_taken_as_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert hub.local_folder(tmp_path) == hub.config_folder(tmp_path) == tmp_path


def test_refuses_a_folder_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config\.json, so it is no model.*: none"):
        hub.local_folder(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    message = r"It looks like a folder of kind adapter\. Found: adapter_config\.json"
    with pytest.raises(FileNotFoundError, match=message):
        hub.local_folder(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["", "model", "./a/b", "/no/such", "../a/b", "a/b/c", "a b/c", "a/b@", "-a/b", "a/.."]
)
def test_refuses_what_is_neither_folder_nor_hub_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither an existing folder nor a hub name"):
        hub.local_folder(name)


def test_refuses_contradictions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="revision 'v1' was given, but .* is a local folder"):
        hub.local_folder(str(tmp_path), revision="v1")
    with pytest.raises(ValueError, match="names revision 'v1', but 'v2' was given too"):
        hub.local_folder("acme/bin@v1", revision="v2")
    with pytest.raises(ValueError, match=r"is a file; give the folder that holds config\.json"):
        hub.local_folder(str(tmp_path / "config.json"))


def test_one_file_of_a_dataset_is_fetched(server, tmp_path):
    (answer,) = call(server.url, tmp_path, "acme/nli", file="nli_for_simcse.csv")
    assert Path(answer).read_bytes() == FILES["acme/nli"]["nli_for_simcse.csv"]
    assert server.sent == ["nli_for_simcse.csv"]
    refused = call(server.url, tmp_path, "acme/nli", "acme/none", "acme/gated", file="other.csv")
    assert [answer.partition(":")[0] for answer in refused] == [
        "NotFound",
        "NotFound",
        "PermissionError",
    ]
    assert "no file other.csv in dataset acme/nli" in refused[0]
