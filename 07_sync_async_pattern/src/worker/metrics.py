"""What the worker tells Prometheus of its work, beside `serving_common.queue.metrics`."""

from prometheus_client import Counter, Histogram

JOBS = Counter("jobs_processed", "Jobs that came out of the worker's hands.", ["outcome"])
INFERENCE_TIME = Histogram(
    "async_inference_seconds",
    "Decoding, preprocessing and the better model for one batch, with the way to the process and back.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
REPLACED = Counter("model_processes_replaced", "Processes that died, and others started in their place.")
