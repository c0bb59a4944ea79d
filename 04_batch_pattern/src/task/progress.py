"""Progress of a batch: a bar on a terminal, elsewhere a log line every few seconds."""

import math
import sys
import time

import structlog
from tqdm import tqdm

from src.constants import PROGRESS_INTERVAL_S
from src.db.cruds import RowRange

log = structlog.get_logger()


class Progress:
    """Counts this job's rows. The percentage covers all jobs: they go through the same ids in ascending order."""

    def __init__(self, rows: RowRange) -> None:
        self.predicted = 0
        self.errors = 0
        self._rows = rows
        self._position = rows.first_id - 1
        self._started = time.monotonic()
        self._logged = -math.inf
        self._bar = tqdm(
            total=rows.last_id - self._position,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f} % |{bar}| {postfix} [{elapsed}, {remaining} left]",
        )

    def close(self) -> None:
        self._bar.close()

    def advance(self, predicted: int, errors: int, last_id: int) -> None:
        """Report committed rows, up to this id."""
        self.predicted += predicted
        self.errors += errors
        now = time.monotonic()
        rate = (self.predicted + self.errors) / max(now - self._started, 1e-3)
        self._bar.set_postfix_str(f"{self.predicted:,} rows, {rate:,.0f} rows/s", refresh=False)
        self._bar.update(last_id - self._position)
        self._position = last_id
        if self._bar.disable and last_id < self._rows.last_id and now - self._logged >= PROGRESS_INTERVAL_S:
            self._logged = now
            done = (last_id - self._rows.first_id + 1) / (self._rows.last_id - self._rows.first_id + 1)
            log.info(
                "batch in progress",
                rows=self.predicted,
                errors=self.errors,
                rows_per_s=round(rate),
                percent=round(100 * done),
                eta_s=round((now - self._started) * (1 - done) / done),
            )
