"""The HTTP application: routes, admission, answers.

POST /v1/embeddings   OpenAI's API                 GET /v1/models
POST /words           what the model would say     GET /health, /metrics, /openapi.json, /
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np
import orjson
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from prompteol_jax.errors import NotFinite, UserError
from prompteol_jax.serve import api, openapi
from prompteol_jax.serve.api import ApiError
from prompteol_jax.serve.batcher import Batcher, DeviceFailed, Job
from prompteol_jax.serve.engine import Engine
from prompteol_jax.serve.engines import Engines
from prompteol_jax.serve.metrics import Metrics

JSON: Final = "application/json"
LEFT: Final = 499  # the client closed the connection; nobody reads the answer
WORDS: Final = 5  # of a text, for the page
_log = logging.getLogger("prompteol_jax.serve")


@dataclass(frozen=True)
class Settings:
    """What a server allows.

    Attributes:
        models: names that are served.
        texts: most texts of a request; body_bytes: most bytes of its body.
        waiting: most texts that are admitted and not answered.
        truncate: cut a text that is too long, instead of refusing it.
        normalize: scale vectors to length one.
        keys: keys that a request may carry; empty: none is asked for.
    """

    models: tuple[str, ...]
    texts: int = 2048
    body_bytes: int = 16 * 2**20
    waiting: int = 4096
    truncate: bool = False
    normalize: bool = True
    keys: tuple[str, ...] = ()


@dataclass
class Server:
    """One model behind HTTP.

    Attributes:
        state: `starting` until every shape has run once; `draining` after SIGTERM.
    """

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)
    state: Literal["starting", "ready", "draining"] = "starting"
    engines: Engines | None = None
    batcher: Batcher | None = None
    in_flight: int = 0  # texts that are admitted and not answered
    rate: float = 0.0  # answered texts a second, smoothed

    def open(self, engines: Engines) -> None:
        """Answer requests from now on; the engines are warm."""
        self.engines = engines
        self.batcher = Batcher(engines, self._observe)
        self.batcher.start()
        self.metrics.shapes.set(engines.shapes)
        name, engine = next(iter(engines.named.items()))
        self.metrics.info.info({"model": name, "bits": engine.bits})
        self.metrics.ready.set(1)
        self.state = "ready"

    def drain(self) -> None:
        """Refuse new requests; those that were admitted are still answered."""
        self.state = "draining"
        self.metrics.ready.set(0)

    def unhealthy(self) -> str | None:
        """Return why the server does not answer requests; None where it does."""
        if self.state != "ready":
            return self.state
        assert self.batcher is not None  # `open` made it before the state was `ready`
        if self.batcher.failure is not None:
            return f"the device failed: {self.batcher.failure}"
        late = self.batcher.overdue()
        return f"a batch is {late:.0f} s late" if late else None

    def admit(self, texts: int) -> None:
        """Count texts in.

        Raises: ApiError 503 where the server does not answer, 429 where too many texts wait.
        """
        if self.state != "ready":
            raise api.unavailable(self.state, f"the server is {self.state}; try again", 5)
        assert self.batcher is not None  # `open` made it before the state was `ready`
        if self.batcher.failure is not None:
            raise api.unavailable("device_failed", "the device failed; restart the server", 60)
        if self.in_flight + texts > self.settings.waiting and self.in_flight:
            self.metrics.refused.inc(texts)
            wait = min(60, max(1, round(self.in_flight / max(self.rate, 1e-9))))
            raise ApiError(
                429,
                f"{self.in_flight} texts wait, with these {texts} more than "
                f"{self.settings.waiting}; try again in {wait} s",
                kind="overloaded",
                headers={"retry-after": str(wait)},
            )
        self.in_flight += texts
        self.metrics.waiting.set(self.in_flight)

    def release(self, texts: int, seconds: float) -> None:
        """Count texts out, and how fast they were answered."""
        self.in_flight -= texts
        self.metrics.waiting.set(self.in_flight)
        now = texts / max(seconds, 1e-3)
        self.rate = now if not self.rate else 0.9 * self.rate + 0.1 * now

    def _observe(self, event: str, bucket: Any, value: int | float) -> None:
        assert self.engines is not None  # batches are theirs
        label = self.engines.label(bucket)
        if event == "launched":
            self.metrics.rows.labels(label).inc(value)
            self.metrics.slots.labels(label).inc(
                next(n for n in self.engines.sizes(bucket) if n >= value)
            )
        elif event == "computed":
            self.metrics.batch_s.labels(label).observe(value)
        else:
            self.metrics.dropped.inc(value)


def make_app(server: Server) -> Starlette:
    """Return the ASGI application of a server."""

    def endpoint(handle: Callable) -> Callable:
        async def run(request: Request) -> Response:
            return await _answered(server, request, handle)

        return run

    def route(path: str, handle: Callable, *methods: str) -> Route:
        return Route(path, endpoint(handle), methods=list(methods))

    return Starlette(
        routes=[
            route("/v1/embeddings", _embeddings, "POST"),
            route("/embeddings", _embeddings, "POST"),
            route("/words", _words, "POST"),
            route("/v1/models", _models, "GET"),
            Route("/openapi.json", lambda request: _openapi(server), methods=["GET"]),
            Route("/health", lambda request: _health(server), methods=["GET"]),
            Route("/health/live", lambda request: Response("ok"), methods=["GET"]),
            Route("/metrics", lambda request: _metrics(server), methods=["GET"]),
            Route("/", lambda request: HTMLResponse(_page()), methods=["GET"]),
        ],
        exception_handlers={404: _not_found, 405: _not_allowed},
    )


async def _answered(server: Server, request: Request, handle: Callable) -> Response:
    """Run a handler; every error becomes an answer, every answer a line in the log."""
    start, number = time.perf_counter(), uuid.uuid4().hex[:16]
    try:
        _check_key(server.settings.keys, request)
        response = await handle(server, request)
    except ApiError as error:
        response = Response(error.body(), error.status, error.headers, JSON)
    except (ClientDisconnect, asyncio.CancelledError):
        response = Response(status_code=LEFT)
    except NotFinite as error:
        failed = ApiError(500, str(error), kind="server_error", code="not_finite")
        response = Response(failed.body(), 500, media_type=JSON)
    except UserError as error:
        failed = ApiError(400, str(error))
        response = Response(failed.body(), 400, media_type=JSON)
    except DeviceFailed:
        failed = api.unavailable("device_failed", "the device failed; restart the server", 60)
        response = Response(failed.body(), 503, failed.headers, JSON)
    except Exception:
        _log.exception("request %s failed", number)
        failed = ApiError(500, f"internal error, request {number}", kind="server_error")
        response = Response(failed.body(), 500, media_type=JSON)
    seconds = time.perf_counter() - start
    response.headers["x-request-id"] = number
    server.metrics.requests.labels(response.status_code).inc()
    server.metrics.request_s.observe(seconds)
    _log.info(
        "%s %s %d %.0f ms", request.method, request.url.path, response.status_code, 1e3 * seconds
    )
    return response


def _check_key(keys: Sequence[str], request: Request) -> None:
    if not keys:
        return
    given = request.headers.get("authorization", "").removeprefix("Bearer ").encode()
    # Every key is compared, so that the time says nothing about which one is near.
    if not sum(hmac.compare_digest(given, key.encode()) for key in keys):
        raise ApiError(
            401,
            "the request needs the header Authorization: Bearer KEY with a key of this server",
            kind="authentication_error",
            headers={"www-authenticate": "Bearer"},
        )


async def _body(request: Request, most: int) -> bytes:
    """Read a body of bounded size.

    Raises: ApiError 413.
    """
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise ApiError(413, f"the body is larger than {most} bytes; send fewer texts at a time")
        chunks.append(chunk)
    return b"".join(chunks)


async def _asked(server: Server, request: Request) -> tuple[api.Request, Engine]:
    """Read what a request asks for, and the engine that answers it.

    Raises: ApiError for a wrong request, and before there is an engine.
    """
    settings = server.settings
    body = await _body(request, settings.body_bytes)
    if server.engines is None:
        server.admit(1)
    assert server.engines is not None  # or `admit` had refused
    named = server.engines.named
    widths = {name: engine.width for name, engine in named.items()}
    asked = api.read_request(body, api.Limits(widths, settings.texts))
    return asked, named[asked.model]


async def _embeddings(server: Server, request: Request) -> Response:
    asked, engine = await _asked(server, request)
    z_nD, tokens, headers = await _vectors(server, request, engine, asked.texts)
    z_nd = await run_in_threadpool(
        api.shape_vectors, z_nD, asked.dimensions, normalize=server.settings.normalize
    )
    content = await run_in_threadpool(api.answer, asked, z_nd, tokens)
    return Response(content, 200, headers, JSON)


async def _vectors(
    server: Server, request: Request, engine: Engine, texts: list[str]
) -> tuple[np.ndarray, int, dict[str, str]]:
    """Return vectors of texts, the ids of their prompts, and the headers that say how it went.

    Raises: ApiError; NotFinite; ClientDisconnect once the client has left.
    """
    server.admit(len(texts))
    start = time.perf_counter()
    try:
        prompts = await run_in_threadpool(engine.prompts, texts)
        server.metrics.tokenize_s.observe(time.perf_counter() - start)
        if not server.settings.truncate:
            engine.refuse_long(prompts)
        server.metrics.texts.inc(len(texts))
        server.metrics.tokens.inc(prompts.tokens)
        server.metrics.truncated.inc(int(prompts.truncated.sum()))
        z_mD, job = await _computed(server, request, engine, prompts)
        z_nD = await run_in_threadpool(engine.finish, prompts, z_mD)
        engine.refuse_not_finite(z_nD)
    finally:
        server.release(len(texts), time.perf_counter() - start)
    queued = (job.launched or job.started) - job.started
    server.metrics.queue_s.observe(queued)
    headers = {
        "x-queue-ms": f"{1e3 * queued:.1f}",
        "x-device-ms": f"{1e3 * (time.perf_counter() - job.started - queued):.1f}",
        "x-prompteol-bits": engine.bits,
    }
    return z_nD, prompts.tokens, headers


async def _computed(
    server: Server, request: Request, engine: Engine, prompts: Any
) -> tuple[np.ndarray, Job]:
    """Wait for the device, or for the client to leave, whichever comes first."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future = loop.create_future()

    def done(found: np.ndarray | Exception) -> None:
        def settle() -> None:
            if result.done():
                return
            if isinstance(found, Exception):
                result.set_exception(found)
            else:
                result.set_result(found)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle)

    job = Job(len(prompts.items), done)
    assert server.batcher is not None and server.engines is not None  # or `admit` had refused
    server.batcher.submit(job, server.engines.items(engine, prompts))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({result, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
        return result.result(), job
    finally:
        job.cancelled = True
        gone.cancel()


async def _gone(request: Request) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _words(server: Server, request: Request) -> Response:
    """Answer {"input": [...]} with the words that the model would say of each text."""
    asked, engine = await _asked(server, request)
    z_nD, _, headers = await _vectors(server, request, engine, asked.texts)
    words = await run_in_threadpool(engine.words, z_nD, WORDS)
    return Response(orjson.dumps({"data": words}), 200, headers, JSON)


async def _models(server: Server, request: Request) -> Response:
    named = {} if server.engines is None else server.engines.named
    data = [
        {"id": name, "object": "model", "owned_by": "prompteol-jax"}
        | {"prompteol_bits": named[name].bits if name in named else None}
        for name in server.settings.models
    ]
    return Response(orjson.dumps({"object": "list", "data": data}), 200, media_type=JSON)


def _health(server: Server) -> Response:
    reason = server.unhealthy()
    body = orjson.dumps({"status": "ok" if reason is None else reason})
    return Response(body, 200 if reason is None else 503, media_type=JSON)


def _metrics(server: Server) -> Response:
    return Response(server.metrics.text(), media_type="text/plain; version=0.0.4")


def _openapi(server: Server) -> Response:
    return Response(orjson.dumps(openapi.document(server.settings.texts)), media_type=JSON)


def _page() -> str:
    return files("prompteol_jax.serve").joinpath("page.html").read_text(encoding="utf-8")


async def _not_found(request: Request, error: Exception) -> Response:
    failed = ApiError(404, f"no such path {request.url.path}; see /v1/embeddings and /v1/models")
    return Response(failed.body(), 404, media_type=JSON)


async def _not_allowed(request: Request, error: Any) -> Response:
    failed = ApiError(405, f"{request.method} is not allowed on {request.url.path}")
    return Response(failed.body(), 405, dict(error.headers or {}), JSON)
