"""The worker's own metrics; `serving_common.queue` has those of jobs and queue."""

from prometheus_client import Counter, Histogram

INFERENCE_TIME = Histogram(
    "async_inference_seconds",
    "Decoding, preprocessing and the better model for one batch, including the transfer to the process and back.",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
)
REPLACED = Counter("model_processes_replaced", "Model processes that died and were replaced.")
