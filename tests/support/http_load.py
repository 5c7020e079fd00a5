"""Load on a server with OpenAI's embeddings API: latencies, throughput, and changed answers."""

from __future__ import annotations

import base64
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


class Client:
    """One connection that is kept.

    Args:
        url: of the server, without a path.
        model: name that requests give.
        wrap: function that puts a text into its prompt, where the server does not.
    """

    def __init__(self, url: str, model: str, wrap: Callable[[str], str] = str):
        where = urlsplit(url)
        self.model, self.wrap = model, wrap
        self._http = http.client.HTTPConnection(where.hostname or "", where.port, timeout=300)

    def send(self, **fields: object) -> tuple[int, dict]:
        """Send a request; return the status and the body."""
        body = json.dumps({"model": self.model, **fields})
        self._http.request("POST", "/embeddings", body, {"content-type": "application/json"})
        reply = self._http.getresponse()
        return reply.status, json.loads(reply.read())

    def ask(self, texts: Sequence[str]) -> list[bytes]:
        """Return the bytes of the vectors of texts."""
        wrapped = [self.wrap(text) for text in texts]
        status, body = self.send(input=wrapped, encoding_format="base64")
        if status != 200:
            raise AssertionError(f"status {status}: {body}")
        found = sorted(body["data"], key=lambda one: one["index"])
        return [base64.b64decode(one["embedding"]) for one in found]

    def leave(self, texts: Sequence[str]) -> None:
        """Send a request and close the connection before the answer."""
        body = json.dumps({"model": self.model, "input": list(texts)})
        self._http.request("POST", "/embeddings", body, {"content-type": "application/json"})
        self._http.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


@dataclass
class Answers:
    """The answers of a server, compared with the first one for the same text.

    Attributes:
        first: bytes of the first answer by text; put expected bytes here before the first request.
        texts: answered; changed: of them with other bytes.
    """

    first: dict[str, bytes] = field(default_factory=dict)
    texts: int = 0
    changed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def compare(self, texts: Sequence[str], vectors: Sequence[bytes]) -> None:
        """Count answers."""
        with self.lock:
            for text, vector in zip(texts, vectors, strict=True):
                self.changed += self.first.setdefault(text, vector) != vector
                self.texts += 1


@dataclass(frozen=True)
class Load:
    """What a closed loop measured.

    Attributes:
        latencies: seconds of each request; seconds: from the first request to the last answer.
    """

    latencies: list[float]
    texts: int
    seconds: float

    @property
    def rate(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds

    def milliseconds(self, quantile: float) -> float:
        """Return a quantile of the latencies."""
        ordered = sorted(self.latencies)
        return 1e3 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def closed_loop(
    clients: Sequence[Client], requests: Iterable[Sequence[str]], answers: Answers
) -> Load:
    """Send requests, one after another from each client, and compare the answers.

    Raises: the first error of a client.
    """
    waiting, lock = iter(requests), threading.Lock()
    latencies: list[float] = []
    failures: list[BaseException] = []
    counted = Counter[str]()

    def taken() -> Iterator[Sequence[str]]:
        while not failures:
            with lock:
                texts = next(waiting, None)
            if texts is None:
                return
            yield texts

    def work(client: Client) -> None:
        try:
            for texts in taken():
                start = time.perf_counter()
                vectors = client.ask(texts)
                seconds = time.perf_counter() - start
                answers.compare(texts, vectors)
                with lock:
                    latencies.append(seconds)
                    counted["texts"] += len(texts)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return Load(latencies, counted["texts"], time.perf_counter() - start)
