"""Figures that are part of the design and that nobody needs to tune."""

MAX_ID = 2**63 - 1
"""The largest id that a database can be asked for; beyond it there is no item."""

MAX_ERROR_LENGTH = 255
"""Characters of a row's error that are stored."""

READ_PAGE_ROWS = 1_000
"""Rows that a list reads at a time: what bounds the API's memory however many rows there are."""

INSERT_PAGE_ROWS = 1_000
"""Rows of one INSERT statement: far below PyMySQL's limit of about 1 MB, beyond which it makes two of one."""

CHUNK_TRIES = 5
"""How often a chunk is tried that loses to another transaction in a deadlock."""

PROGRESS_EVERY_S = 10
"""Seconds between two lines of progress in the log."""

RETRY_AFTER_S = 0.1
"""Pause before such a chunk is tried again."""
