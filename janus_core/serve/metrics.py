"""Metrics in Prometheus' format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Args:
        waiting: {model: a function that says how many images or answers wait}.
    """

    def __init__(self, waiting: dict):
        self.registry = CollectorRegistry()
        own = {"registry": self.registry}
        self.requests = Counter("janus_requests_total", "Requests by path and status", ["path", "status"], **own)
        self.seconds = Histogram("janus_request_seconds", "Seconds per request", ["path"], buckets=SECONDS, **own)
        self.images = Counter("janus_images_total", "Images that were generated", ["model"], **own)
        self.tokens = Counter("janus_answer_tokens_total", "Tokens of answers", ["model"], **own)
        self.batch = Histogram("janus_batch_size", "Images or answers per batch", ["model"], buckets=SIZES, **own)
        gauge = Gauge("janus_waiting", "Images or answers that wait", ["model"], **own)
        for name, function in waiting.items():
            gauge.labels(name).set_function(function)

    def text(self) -> tuple[bytes, str]:
        """(the metrics, their content type)."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
