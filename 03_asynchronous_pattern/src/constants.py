"""What is the same in every deployment."""

SIGNATURE_INPUT = "input"
SIGNATURE_OUTPUT = "output"
"""Names in the signature of a model whose server has no metadata: rows in, answers out, both DT_FLOAT."""

MAX_WAIT_S = 30
"""Longest long poll of GET /job/{job_id}?wait=…, in seconds."""

HEALTH_WITHIN_S = 0.7
"""Seconds after which health reports a dependency that does not answer. Probes commonly wait 1 s."""

MAX_ROWS = 4096
"""Jobs share one Predict call up to this many rows; a larger job has a call of its own."""

TIMEOUT_ERROR = "Model inference timeout"
UNAVAILABLE = "Service temporarily unavailable"
