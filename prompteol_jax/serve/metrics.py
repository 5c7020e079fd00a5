"""Prometheus metrics of a server, in its own registry."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def make(kind: type, name: str, text: str, labels: tuple[str, ...] = (), **how: Any) -> Any:
            return kind(f"prompteol_{name}", text, labels, registry=self.registry, **how)

        self.requests = make(Counter, "requests", "Answers by status.", ("status",))
        self.texts = make(Counter, "texts", "Texts that were admitted.")
        self.tokens = make(Counter, "tokens", "Ids of admitted prompts, templates included.")
        self.truncated = make(Counter, "truncated", "Texts that were cut.")
        self.dropped = make(Counter, "dropped_texts", "Texts whose client left before the device.")
        self.refused = make(Counter, "refused_texts", "Texts that were refused with 429.")
        self.waiting = make(Gauge, "waiting_texts", "Texts that are admitted and not answered.")
        self.rows = make(Counter, "batch_rows", "Texts in launched batches.", ("bucket",))
        self.slots = make(Counter, "batch_slots", "Rows of launched batches.", ("bucket",))
        self.ready = make(Gauge, "ready", "1 if the server answers requests.")
        self.shapes = make(Gauge, "compiled_shapes", "Shapes of batches that are compiled.")
        self.info = make(Info, "served", "What is served.")
        how: dict[str, Any] = dict(buckets=_SECONDS)
        self.request_s = make(Histogram, "request_seconds", "Duration of requests.", **how)
        self.queue_s = make(Histogram, "queue_seconds", "Wait before the device.", **how)
        self.tokenize_s = make(Histogram, "tokenize_seconds", "Tokenization of a request.", **how)
        self.batch_s = make(
            Histogram, "batch_seconds", "From launch to result.", ("bucket",), **how
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
