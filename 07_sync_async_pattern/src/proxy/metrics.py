"""What the proxy tells Prometheus beside what every service tells."""

from prometheus_client import Counter, Histogram

STAGE_TIME = Histogram(
    "sync_stage_seconds",
    "The fast answer's parts: `read` is Base64, decoding and resizing, `model` the run, neither waiting for a thread.",
    ["stage"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
JOBS = Counter("jobs_registered", "Images for which the better answer was promised, or could not be.", ["outcome"])
