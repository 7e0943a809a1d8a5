"""What the server counts, in a registry of its own, so that several servers may live in one process."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms of one server, in Prometheus' text format."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "moodal_requests", "Requests answered, by path, input and status", ["path", "input", "status"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "moodal_request_seconds", "Time from a request's head to the end of its answer", ["path", "input"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.stages = Histogram(
            "moodal_stage_seconds", "Time of each stage of a clip", ["stage"], buckets=SECONDS, registry=registry
        )
        self.batch_rows = Histogram(
            "moodal_batch_rows", "Rows given to the model at once", buckets=ROWS, registry=registry
        )
        self.received = Counter("moodal_received_bytes", "Bytes of clips received", registry=registry)
        self.lost_decoders = Counter(
            "moodal_lost_decoders", "Decoding processes that were replaced, by cause", ["cause"], registry=registry
        )
        self._waiting = Gauge("moodal_waiting", "Requests waiting for the model", registry=registry)
        self._uploads = Gauge("moodal_uploads", "Clips being received, waiting and being decoded", registry=registry)
        self._ready = Gauge("moodal_ready_decoders", "Decoding processes that are ready", registry=registry)

    def follow(self, *, waiting: Callable[[], int], uploads: Callable[[], int], ready: Callable[[], int]) -> None:
        """Read the three gauges from these functions."""
        self._waiting.set_function(waiting)
        self._uploads.set_function(uploads)
        self._ready.set_function(ready)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)
