"""What is the same in every deployment."""

SIGNATURE_INPUT = "input"
SIGNATURE_OUTPUT = "output"
"""Names in the model's `serving_default` signature: rows (N, 4) in, probabilities (N, 3) out, both DT_FLOAT."""

MAX_WAIT_S = 30
"""GET /job/{job_id}?wait=… holds the answer back no longer than this."""

HEALTH_WITHIN_S = 1
"""GET /health: a neighbour that is silent for so long is unavailable."""

MAX_ROWS = 4096
"""Jobs share one Predict call up to so many rows; a larger job has a call of its own."""

TIMEOUT_ERROR = "Model inference timeout"
UNAVAILABLE = "Service temporarily unavailable"
