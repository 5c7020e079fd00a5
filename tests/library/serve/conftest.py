"""Servers that run the command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest


class Served:
    """A running `prompteol serve`."""

    def __init__(self, *flags):
        port = [] if "--port" in flags else ["--port", "0"]
        command = [sys.executable, "-m", "prompteol_jax.cli", "serve", *port, *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines, self.ready = [], threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line)
            if found := re.search(r"ready on (http://\S+), bits", line):
                self.url = found[1]
                self.ready.set()

    def end(self):
        """Kill the process."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stderr.close()

    def post(self, body):
        """Send a request; its status and body."""
        request = urllib.request.Request(f"{self.url}/v1/embeddings", json.dumps(body).encode())
        try:
            with urllib.request.urlopen(request, timeout=120) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture
def served():
    """A function that starts a server and waits until it is ready; it ends with the test."""
    running = []

    def start(*flags, wait=True):
        server = Served(*flags)
        running.append(server)
        assert not wait or server.ready.wait(400), "".join(server.lines)
        return server

    yield start
    for server in running:
        server.end()
