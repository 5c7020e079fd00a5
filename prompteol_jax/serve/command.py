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
from pathlib import Path
from typing import Annotated, Final

import tyro
import uvicorn

from prompteol_jax.cli.options import ModelOptions, check, flag
from prompteol_jax.errors import NotFound, UserError
from prompteol_jax.serve.app import Server, Settings, make_app
from prompteol_jax.serve.engine import Engine

KEYS: Final = "PROMPTEOL_API_KEYS"
CPU_BATCH_TOKENS: Final = 64  # small batches answer one text fast
_log = logging.getLogger("prompteol_jax.serve")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeOptions(ModelOptions):
    """Serves vectors over HTTP in the form of OpenAI's embeddings API."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: int = flag(8000, at_least=0, at_most=65535)
    """Port to listen on; 0 for a free one, which is printed."""
    served_name: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Name that requests may give as `model`; --model by default. Repeat it for several."""
    truncate: bool = False
    """Cut a text that is too long, as `encode` does, instead of refusing it."""
    raw: bool = False
    """Return vectors as they are, instead of scaled to length one."""
    max_texts: int = flag(2048, at_least=1)
    """Most texts of a request."""
    max_body_mb: float = flag(16.0, above=0)
    """Largest body of a request, in megabytes."""
    max_waiting: int = flag(4096, at_least=1)
    """Most texts that wait for an answer; more are refused with 429."""
    api_key_file: Path | None = None
    """File of keys, one a line, of which a request must carry one; or the environment variable
    PROMPTEOL_API_KEYS, separated by commas."""
    drain_s: float = flag(30.0, at_least=0)
    """Seconds that SIGTERM leaves to requests that were admitted."""

    def problems(self) -> list[str]:
        """List what does not fit between these flags."""
        if self.plan == "fixed":
            return []
        return [f"--plan {self.plan} lets vectors depend on other texts; serve takes fixed"]


def serve(options: ServeOptions) -> None:
    """Serve until a signal ends it."""
    check(options)
    settings = Settings(
        models=options.served_name or (options.model,),
        texts=options.max_texts,
        body_bytes=int(options.max_body_mb * 2**20),
        waiting=options.max_waiting,
        truncate=options.truncate,
        normalize=not options.raw,
        keys=read_keys(options.api_key_file),
    )
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    asyncio.run(_serve(options, Server(settings)))


def read_keys(file: Path | None) -> tuple[str, ...]:
    """Read the keys of a file, or of the environment.

    Raises: NotFound; UserError for a file without a key.
    """
    if file is None:
        return tuple(key.strip() for key in os.environ.get(KEYS, "").split(",") if key.strip())
    if not file.is_file():
        raise NotFound(f"no file {file} of --api-key-file")
    lines = file.read_text(encoding="utf-8").splitlines()
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys:
        raise UserError(f"{file} of --api-key-file holds no key; it needs one a line")
    return keys


def load(options: ServeOptions) -> Engine:
    """Load the model and run every shape once."""
    tokens = options.batch_tokens
    if tokens is None:
        import jax

        tokens = CPU_BATCH_TOKENS if jax.default_backend() == "cpu" else None
    engine = Engine(dataclasses.replace(options, batch_tokens=tokens).load("float32"))
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
