"""The worker's own metrics; `serving_common.queue` has those of jobs and queue."""

from prometheus_client import Histogram

PROCESSING_TIME = Histogram(
    "processing_time_seconds",
    "From a job's claim to its stored result.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
BATCH_JOBS = Histogram("batch_jobs", "Jobs in one claim.", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
