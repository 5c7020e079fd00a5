"""A stand-in for Google Cloud Storage: its JSON API over objects in memory, on a local port.

It answers what gcsfs, tensorstore and google-cloud-storage ask for, and nothing else, and keeps the
store's laws: an object appears whole or not at all, there are no folders and no renames, and every
write is another generation. `environment` is what points the three of them at it.
"""

from __future__ import annotations

import base64
import contextlib
import email
import email.policy
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)")


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that hang up."""


class Bucket:
    """A server with one bucket.

    Attributes:
        objects: generation and bytes by name.
        log: method and path of every request, in their order.
    """

    def __init__(self, name: str = "bucket"):
        self.name = name
        self.objects: dict[str, tuple[int, bytes]] = {}
        self.log: list[tuple[str, str]] = []
        self.generation = 0
        self.metageneration: dict[str, int] = {}
        self.uploads: dict[str, tuple[str, bytearray]] = {}
        self.lock = threading.RLock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            # gcsfs would ask by gRPC what kind of bucket this is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }

    @contextlib.contextmanager
    def running(self) -> Iterator[Bucket]:
        """Answer requests meanwhile."""
        thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        """Store an object."""
        with self.lock:
            self.generation += 1
            self.objects[name] = (self.generation, bytes(content))
            self.metageneration[name] = 1
            return self.described(name)

    def described(self, name: str) -> dict[str, Any]:
        """The metadata of an object."""
        generation, content = self.objects[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.name,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": str(self.metageneration.get(name, 1)),
            "etag": f"e{generation}",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "timeCreated": "2024-01-01T00:00:00.000Z",
            "updated": "2024-01-01T00:00:00.000Z",
        }

    def listed(self, query: dict[str, str]) -> dict[str, Any]:
        """One page of names, and what they have in common up to a delimiter."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        items, prefixes = [], []
        for name in sorted(n for n in self.objects if n.startswith(prefix)):
            end = name.find(delimiter, len(prefix)) if delimiter else -1
            if end < 0:
                items.append(self.described(name))
            elif name[: end + 1] not in prefixes:
                prefixes.append(name[: end + 1])
        return {"kind": "storage#objects", "items": items, "prefixes": prefixes}


def _handler(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        disable_nagle_algorithm = True
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def _asked(self) -> tuple[str, dict[str, str], bytes]:
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query).items()}
            body = (
                self._chunked() if "chunked" in self.headers.get("Transfer-Encoding", "") else b""
            )
            body = body or self.rfile.read(int(self.headers.get("Content-Length") or 0))
            bucket.log.append((self.command, unquote(url.path)))
            return url.path, query, body

        def _chunked(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _json(self, content: Any, status: int = 200, **headers: str) -> None:
            body = json.dumps(content).encode()
            self._answer(status, body, Content_Type="application/json", **headers)

        def _missing(self) -> None:
            self._json({"error": {"code": 404, "message": "Not Found"}}, 404)

        def do_GET(self) -> None:
            path, query, _ = self._asked()
            with bucket.lock:
                if path == f"/storage/v1/b/{bucket.name}":
                    return self._json({"name": bucket.name, "kind": "storage#bucket"})
                if path == f"/storage/v1/b/{bucket.name}/o":
                    return self._json(bucket.listed(query))
                found = _OBJECT.fullmatch(path)
                name = unquote(found[2]) if found else ""
                if not found or found[1] != bucket.name or name not in bucket.objects:
                    return self._missing()
                if query.get("alt") == "media":
                    return self._content(name, query)
                return self._json(bucket.described(name))

        def _content(self, name: str, query: dict[str, str]) -> None:
            generation, content = bucket.objects[name]
            known = {"x_goog_generation": str(generation), "ETag": f"e{generation}"}
            if query.get("ifGenerationNotMatch") == str(generation):
                return self._answer(304, **known)
            if query.get("ifGenerationMatch", str(generation)) != str(generation):
                return self._answer(412, **known)
            asked = re.fullmatch(r"bytes=(\d+)-(\d*)|bytes=-(\d+)", self.headers.get("Range", ""))
            if not asked:
                return self._answer(200, content, **known)
            first = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[3]))
            last = min(int(asked[2] or len(content)), len(content) - 1)
            if first > last:
                return self._answer(416)
            spans = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], Content_Range=spans, **known)

        def do_POST(self) -> None:
            path, query, body = self._asked()
            with bucket.lock:
                if copied := _COPY.fullmatch(path):
                    source, target = unquote(copied[2]), unquote(copied[4])
                    if source not in bucket.objects:
                        return self._missing()
                    made = bucket.put(target, bucket.objects[source][1])
                    return self._json({"done": True, "resource": made})
                if path != f"/upload/storage/v1/b/{bucket.name}/o":
                    return self._missing()
                if "upload_id" in query:
                    return self._part(query["upload_id"], body)
                kind = query["uploadType"]
                if kind == "resumable":
                    name = query.get("name") or json.loads(body)["name"]
                    number = str(len(bucket.uploads))
                    bucket.uploads[number] = (name, bytearray())
                    place = f"{bucket.url}{path}?uploadType=resumable&upload_id={number}"
                    return self._json({}, Location=place)
                name = query.get("name", "")
                if kind == "multipart":
                    fields, body = self._parts(body)
                    name = fields["name"]
                return self._store(name, query, body)

        def do_PUT(self) -> None:
            _, query, body = self._asked()
            with bucket.lock:
                self._part(query["upload_id"], body)

        def _part(self, number: str, body: bytes) -> None:
            name, content = bucket.uploads[number]
            content += body
            total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
            if total == "*":
                return self._answer(308, Range=f"bytes=0-{len(content) - 1}")
            return self._json(bucket.put(name, content))

        def _parts(self, body: bytes) -> tuple[dict[str, Any], bytes]:
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
            # The parser turns ends of lines around, so the content is cut out of the body itself.
            mark = b"--" + message.get_boundary().encode()
            _, fields, content, _ = body.split(mark, 3)
            cut = [
                part.partition(b"\r\n\r\n" if b"\r\n\r\n" in part else b"\n\n")[2]
                for part in (fields, content)
            ]
            tail = b"\r\n" if content.endswith(b"\r\n") else b"\n"
            return json.loads(cut[0]), cut[1].removesuffix(tail)

        def _store(self, name: str, query: dict[str, str], body: bytes) -> None:
            there = str(bucket.objects[name][0]) if name in bucket.objects else "0"
            if query.get("ifGenerationMatch", there) != there:
                return self._json({"error": {"code": 412, "message": "generation"}}, 412)
            return self._json(bucket.put(name, body))

        def do_DELETE(self) -> None:
            path, query, _ = self._asked()
            with bucket.lock:
                found = _OBJECT.fullmatch(path)
                name = unquote(found[2]) if found else ""
                if name not in bucket.objects:
                    return self._missing()
                if self._is_other(name, query):
                    return self._json({"error": {"code": 412, "message": "generation"}}, 412)
                del bucket.objects[name]
                return self._answer(204)

        def do_PATCH(self) -> None:
            path, query, _ = self._asked()
            with bucket.lock:
                found = _OBJECT.fullmatch(path)
                name = unquote(found[2]) if found else ""
                if name not in bucket.objects:
                    return self._missing()
                if self._is_other(name, query):
                    return self._json({"error": {"code": 412, "message": "generation"}}, 412)
                bucket.metageneration[name] = bucket.metageneration.get(name, 1) + 1
                return self._json(bucket.described(name))

        def _is_other(self, name: str, query: dict[str, str]) -> bool:
            there = bucket.described(name)
            return any(
                query.get(f"if{kind.capitalize()}Match", there[kind]) != there[kind]
                for kind in ("generation", "metageneration")
            )

    return Handler
