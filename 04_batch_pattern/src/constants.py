"""Constants of the design that operators have no reason to tune."""

MAX_ID = 2**63 - 1
"""The largest id that the database drivers accept."""

MAX_ERROR_LENGTH = 255
"""Characters stored of the reason why a row cannot be predicted."""

READ_PAGE_ROWS = 1_000
"""Rows that a list reads at a time; bounds the API's memory."""

INSERT_PAGE_ROWS = 1_000
"""Rows per INSERT statement: far below the 1 MB at which PyMySQL would split it in two."""

CHUNK_ATTEMPTS = 5
"""How often a chunk is attempted while it conflicts with other transactions."""

CHUNK_RETRY_DELAY_S = 0.1
"""Pause before a chunk is attempted again."""

PROGRESS_INTERVAL_S = 10
"""Seconds between two progress lines in the log."""
