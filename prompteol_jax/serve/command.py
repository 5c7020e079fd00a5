"""`prompteol serve`: vectors over HTTP, the same bits under any load.

The socket is bound first and answers 503 while the model is loaded and every shape is compiled and
run once. SIGTERM stops listening, answers what was admitted, and ends with status 0; a second one
ends the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Final

import uvicorn

from prompteol_jax import runtime
from prompteol_jax.cli.several import load_several
from prompteol_jax.embedder import Embedder
from prompteol_jax.serve import like
from prompteol_jax.serve.app import Server, Settings, make_app
from prompteol_jax.serve.engine import Engine
from prompteol_jax.serve.engines import Engines
from prompteol_jax.serve.options import ServeOptions, read_keys

CPU_BATCH_TOKENS: Final = 64  # answers one text fast where a full batch must be computed
_log = logging.getLogger("prompteol_jax.serve")


def serve(options: ServeOptions) -> None:
    """Serve until a signal ends it."""
    options = like.filled(options)
    settings = Settings(
        models=(*options.names, *options.others),
        texts=options.max_texts,
        body_bytes=int(options.max_body_mb * 2**20),
        waiting=options.max_waiting,
        truncate=options.truncate != "error",
        normalize=not options.raw,
        keys=read_keys(options.api_key_file),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(_serve(options, Server(settings)))


def load(options: ServeOptions) -> Engines:
    """Load the model and run every shape of every prompt once."""
    # A request whose text is too long gets its own error, not one of the tokenizer's thread.
    cut = "end" if options.truncate == "error" else options.truncate
    own = dataclasses.replace(options, truncate=cut)
    loaded = load_several([own, *own.others.values()], "float32")
    first, *others = [_warm_engine(options, embedder) for embedder in loaded]
    named = dict(zip(own.others, others, strict=True))
    return Engines({**dict.fromkeys(options.names, first), **named})


def _warm_engine(options: ServeOptions, embedder: Embedder) -> Engine:
    """Return an engine of encode's batches, or of small ones on a CPU that must fill a batch."""
    engine = Engine(embedder, clean=options.clean)
    chosen = options.batch_tokens is not None or options.like is not None
    if not chosen and runtime.on_cpu() and not engine.answers_fast():
        engine = Engine(embedder, batch_tokens=CPU_BATCH_TOKENS, clean=options.clean)
    engine.warm()
    return engine


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers: it would raise the signal again and end with its status."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _serve(options: ServeOptions, server: Server) -> None:
    loop = asyncio.get_running_loop()
    http = _Uvicorn(
        uvicorn.Config(
            make_app(server),
            host=options.host,
            port=options.port,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=max(1, round(options.drain_s)),
        )
    )
    failures: list[BaseException] = []

    def stop() -> None:
        if server.state == "draining":
            os._exit(1)
        _log.info("draining: %d texts are still to be answered", server.in_flight)
        server.drain()
        http.should_exit = True

    def prepare() -> None:
        try:
            engines = load(options)
            loop.call_soon_threadsafe(_open, server, engines, options, http)
        except BaseException as error:
            failures.append(error)
            http.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    threading.Thread(target=prepare, name="load", daemon=True).start()
    await http.serve()
    if failures:
        raise failures[0]
    if server.batcher is not None:
        await asyncio.to_thread(server.batcher.close)


def _open(server: Server, engines: Engines, options: ServeOptions, http: uvicorn.Server) -> None:
    if server.state == "draining":
        return
    server.open(engines)
    sockets = [s for each in http.servers for s in each.sockets]
    where = sockets[0].getsockname()[:2] if sockets else (options.host, options.port)
    bits = ", ".join(f"{engine.bits} ({name})" for name, engine in engines.named.items())
    _log.info("ready on http://%s:%s, bits %s", *where, bits)
