"""Processes of one run: they meet before jax starts, and end together if one of them fails.

Neither needs jax, whose own barriers abort the process from C++ after minutes. `meet` brings the
processes together at the coordinator's address. Afterwards each one keeps a connection to process
0: a failure is sent over it, a lost connection is a failure too, and process 0 passes both on.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

from prompteol_jax.errors import UserError, listed

_RETRY: Final = 0.2  # seconds between two tries to reach process 0
_CONNECT: Final = 10.0  # seconds in which a process that has started answers
_KILLED: Final = 1  # exit status for a process that ended without giving its own

_watch: Watch | None = None


def problems(coordinator: str | None, processes: int | None, process: int | None) -> list[str]:
    """List what does not fit between a coordinator, a number of processes and this one's number."""
    if coordinator in (None, "auto"):
        if processes is None and process is None:
            return []
        return ["--processes and --process need --coordinator HOST:PORT"]
    if processes is None or process is None or not 0 <= process < processes:
        return [f"--coordinator {coordinator} needs --processes N and --process I (0 to N-1)"]
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        return [f"--coordinator {coordinator} is neither HOST:PORT nor `auto`"]
    return []


def meet(address: str, processes: int, process: int, seconds: float) -> None:
    """Return when all processes of a run have called this.

    Args:
        address: HOST:PORT at which process 0 listens until all have come.
        seconds: longest time to wait.
    Raises: UserError that names the processes that did not come, in each of those that did.
    """
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    if process == 0:
        _gather(address, int(port), processes, deadline, seconds)
    else:
        _come((host.strip("[]"), int(port)), processes, process, deadline, seconds)


def watch(process: int, processes: int, host: str, exchange: Callable[[Any], list[Any]]) -> None:
    """End this process within seconds if another one fails, and the others if this one does.

    Args:
        host: name under which the others reach process 0.
        exchange: function that returns every process's value, in their order.
    """
    global _watch  # noqa: PLW0603 - a process belongs to one run
    _watch = Watch(process, processes)
    _watch.connect(host, exchange)
    atexit.register(_watch.leave)


def joined() -> bool:
    """Say whether this process belongs to a run of several."""
    return _watch is not None


def fail(message: str, status: int) -> None:
    """End this process and all others of its run immediately; do nothing where it is alone."""
    if _watch is not None:
        _watch.fail(message, status)


class Watch:
    """The connections of one process to the others, each read by a thread."""

    def __init__(self, process: int, processes: int):
        self._process, self._processes = process, processes
        self._peers: dict[int, socket.socket] = {}
        self._leaving = False

    def connect(self, host: str, exchange: Callable[[Any], list[Any]]) -> None:
        """Connect this process to process 0, and process 0 to all others."""
        if self._process == 0:
            with _listener(0) as listener:
                offer = {"port": listener.getsockname()[1], "token": secrets.token_hex(16)}
                exchange(offer)
                self._accept(listener, offer["token"])
        else:
            offer = exchange(None)[0]
            peer = socket.create_connection((host, offer["port"]), _CONNECT)
            self._add(0, peer, {"process": self._process, "token": offer["token"]})
        # All are connected before any goes on to what may fail.
        exchange(None)
        for process, peer in self._peers.items():
            reader = threading.Thread(target=self._read, args=(process, peer), daemon=True)
            reader.start()

    def fail(self, message: str, status: int) -> NoReturn:
        """Tell the others, and end this process without jax's wait for them."""
        self._leaving = True
        self._tell({"process": self._process, "failed": message, "status": status})
        _exit(status)

    def leave(self) -> None:
        """Tell the others that this process ends as it should, or by an error that Python shows."""
        if self._leaving:
            return
        self._leaving = True
        error = getattr(sys, "last_value", None)  # set for an error that ends the interpreter
        if error is None:
            self._tell({"process": self._process, "done": True})
        else:
            message = f"{type(error).__name__}: {error}"
            self._tell({"process": self._process, "failed": message, "status": _KILLED})
            _exit(_KILLED)

    def _accept(self, listener: socket.socket, token: str) -> None:
        listener.settimeout(_CONNECT)
        while len(self._peers) < self._processes - 1:
            peer, _ = listener.accept()
            peer.settimeout(_CONNECT)
            hello = _receive(peer)
            if hello is None or hello.get("token") != token:
                peer.close()
                continue
            self._add(hello["process"], peer, None)

    def _add(self, process: int, peer: socket.socket, hello: dict[str, Any] | None) -> None:
        if hello is not None:
            _send(peer, hello)
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)
        self._peers[process] = peer

    def _read(self, process: int, peer: socket.socket) -> None:
        message = _receive(peer)
        if self._leaving or (message is not None and "done" in message):
            return
        if message is None:
            told = "ended without a message; was it killed?"
            message = {"process": process, "failed": told, "status": _KILLED}
        self._leaving = True
        if self._process == 0:
            self._tell(message)
        sys.stderr.write(
            f"process {message['process']} of {self._processes}: {message['failed']}\n"
        )
        _exit(message["status"])

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                _send(peer, message)


def _gather(address: str, port: int, processes: int, deadline: float, seconds: float) -> None:
    waiting: dict[int, socket.socket] = {}
    try:
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listener(port))
            while len(waiting) < processes - 1 and (left := deadline - time.monotonic()) > 0:
                listener.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    peer, _ = listener.accept()
                    stack.enter_context(peer)
                    peer.settimeout(_CONNECT)
                    hello = _receive(peer) or {}
                    if hello.get("processes") == processes and 0 < hello["process"] < processes:
                        waiting[hello["process"]] = peer
            missing = [i for i in range(1, processes) if i not in waiting]
            error = missing and _absence(address, missing, processes, seconds)
            for peer in waiting.values():
                with contextlib.suppress(OSError):
                    _send(peer, {"error": error} if error else {"go": True})
    except OSError as error:
        raise UserError(f"--coordinator {address}: {error.strerror or error}") from error
    if error:
        raise UserError(error)


def _come(
    address: tuple[str, int], processes: int, process: int, deadline: float, seconds: float
) -> None:
    reason = "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, min(left, _CONNECT)) as peer:
                _send(peer, {"process": process, "processes": processes})
                peer.settimeout(left + _CONNECT)
                answer = _receive(peer)
        except OSError as error:
            answer, reason = None, error.strerror or str(error)
        if answer is not None and answer.get("go"):
            return
        if answer is not None and "error" in answer:
            raise UserError(str(answer["error"]))
        time.sleep(_RETRY)
    raise UserError(
        _absence(f"{address[0]}:{address[1]}", [0], processes, seconds) + f" (last try: {reason})"
    )


def _absence(address: str, missing: list[int], processes: int, seconds: float) -> str:
    named = f"process {missing[0]}" if len(missing) == 1 else f"processes {listed(missing)}"
    return (
        f"{named} of {processes} did not come to {address} within {seconds / 60:g} minutes: start "
        "all of them with the same --coordinator and --processes, or wait longer with "
        "--wait-minutes"
    )


def _listener(port: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", port))


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _receive(peer: socket.socket) -> dict[str, Any] | None:
    """Return the next message; None where the connection ends or holds something else."""
    received = b""
    try:
        while not received.endswith(b"\n") and len(received) < 1 << 16:
            more = peer.recv(4096)
            if not more:
                return None
            received += more
        message = json.loads(received)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _exit(status: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
