"""What Prometheus is told; over several workers through the files of its multiprocess mode."""

import os

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)
from prometheus_client import REGISTRY as REGISTRY

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Counter("palate_requests", "Requests answered.", ["route", "status"])
SECONDS = Histogram("palate_request_seconds", "Seconds until a response began.", ["route"], buckets=_SECONDS)
ANSWERS = Counter("palate_answers", "Answers given, by how they came about.", ["strategy", "arm"])
TOKENS = Counter("palate_tokens", "Tokens spent on candidates.", ["kind"])
READINGS = Counter("palate_readings", "Messages read as replies.", ["target", "learned"])
FEEDBACK = Counter("palate_feedback", "Feedback taken in.", ["name", "learned"])
STREAMS = Gauge("palate_streams_open", "Streams being sent.", multiprocess_mode="livesum")
JOBS = Counter("palate_jobs", "Background work done.", ["kind", "outcome"])


def exposition() -> tuple[bytes, str]:
    """All figures as Prometheus reads them, and their media type."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_LATEST
