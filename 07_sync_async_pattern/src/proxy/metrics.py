"""The proxy's own metrics, in addition to those of every service."""

from prometheus_client import Counter, Histogram

STAGE_TIME = Histogram(
    "sync_stage_seconds",
    "Stages of the fast answer: `read` is Base64, decoding and resizing, `model` the run; waiting excluded.",
    ["stage"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
JOBS = Counter("jobs_registered", "Readable images, by whether a job for the better model was enqueued.", ["outcome"])
for _outcome in ("registered", "queue_full", "redis_away"):
    JOBS.labels(_outcome)  # a rate needs the 0 before the first one
