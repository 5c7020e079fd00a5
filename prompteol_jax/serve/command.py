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
from prompteol_jax.serve.app import Server, Settings, make_app
from prompteol_jax.serve.engine import Engine
from prompteol_jax.serve.options import ServeOptions, read_keys

CPU_BATCH_TOKENS: Final = 64  # small batches answer one text fast
_log = logging.getLogger("prompteol_jax.serve")


def serve(options: ServeOptions) -> None:
    """Serve until a signal ends it."""
    settings = Settings(
        models=options.served_name or (options.model,),
        texts=options.max_texts,
        body_bytes=int(options.max_body_mb * 2**20),
        waiting=options.max_waiting,
        truncate=options.truncate != "error",
        normalize=not options.raw,
        keys=read_keys(options.api_key_file),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(_serve(options, Server(settings)))


def load(options: ServeOptions) -> Engine:
    """Load the model and run every shape once."""
    tokens = options.batch_tokens
    if tokens is None and runtime.on_cpu():
        tokens = CPU_BATCH_TOKENS
    # A request whose text is too long gets its own error, not one of the tokenizer's thread.
    cut = "end" if options.truncate == "error" else options.truncate
    changed = dataclasses.replace(options, batch_tokens=tokens, truncate=cut)
    engine = Engine(changed.load("float32"))
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
            engine = load(options)
            loop.call_soon_threadsafe(_open, server, engine, options, http)
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


def _open(server: Server, engine: Engine, options: ServeOptions, http: uvicorn.Server) -> None:
    if server.state == "draining":
        return
    server.open(engine)
    sockets = [s for each in http.servers for s in each.sockets]
    where = sockets[0].getsockname()[:2] if sockets else (options.host, options.port)
    _log.info("ready on http://%s:%s, bits %s", *where, engine.bits)
