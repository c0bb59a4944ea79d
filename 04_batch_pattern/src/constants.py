"""Constants of the design that operators have no reason to tune."""

from datetime import timedelta

MAX_ID = 2**31 - 1
"""The largest id: `items.id` is an INTEGER."""

IDEMPOTENCY_KEY_LIFETIME = timedelta(days=1)
"""How long a request can be repeated under its Idempotency-Key; the jobs delete older keys."""

HEALTH_TIMEOUT_S = 0.8
"""Until /health answers 503. Probes commonly wait 1 s."""

MAX_ERROR_LENGTH = 255
"""Characters stored of the reason why a row cannot be predicted."""

READ_PAGE_ROWS = 1_000
"""Rows that a list reads at a time; bounds the API's memory."""

INSERT_PAGE_ROWS = 1_000
"""Rows per INSERT statement, at most."""

INSERT_BYTES = 1_000_000
"""Size of an INSERT statement, or less where max_allowed_packet is small. PyMySQL would split a larger one in two, of
which only the second one's ids would be known."""

INSERT_ROW_BYTES = 100
"""More than a row takes in an INSERT statement beside its values."""

STATEMENT_BYTES = 500
"""More than a statement takes without its rows."""

CHUNK_ATTEMPTS = 5
"""How often a chunk is attempted while it conflicts with other transactions."""

CHUNK_RETRY_DELAY_S = 0.1
"""Pause before a chunk is attempted again."""

PROGRESS_INTERVAL_S = 10
"""Seconds between two progress lines in the log."""

CHUNK_GROUPS = 20
"""Parts of a run, by its ids, that have a span each in its trace."""
