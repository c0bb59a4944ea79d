"""How far a batch is: a bar on a terminal, now and then a line in the log elsewhere."""

import math
import sys
import time
from types import TracebackType
from typing import Self

import structlog
from tqdm import tqdm

from src.constants import PROGRESS_EVERY_S
from src.db.cruds import Found

log = structlog.get_logger()


class Progress:
    """Counts this job's rows; measures how far all jobs are by the ids, which all of them go through upwards."""

    def __init__(self, found: Found) -> None:
        self.predicted = 0
        self.errors = 0
        self._found = found
        self._position = found.first_id - 1
        self._started = time.monotonic()
        self._logged = -math.inf
        self._bar = tqdm(
            total=found.last_id - self._position,
            disable=not sys.stderr.isatty(),
            bar_format="{percentage:3.0f} % |{bar}| {postfix} [{elapsed}, {remaining} left]",
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def advance(self, predicted: int, errors: int, last_id: int) -> None:
        """So many rows, up to this id, are committed."""
        self.predicted += predicted
        self.errors += errors
        now = time.monotonic()
        rate = (self.predicted + self.errors) / max(now - self._started, 1e-3)
        self._bar.set_postfix_str(f"{self.predicted:,} rows, {rate:,.0f} rows/s", refresh=False)
        self._bar.update(last_id - self._position)
        self._position = last_id
        if self._bar.disable and last_id < self._found.last_id and now - self._logged >= PROGRESS_EVERY_S:
            self._logged = now
            done = (last_id - self._found.first_id + 1) / (self._found.last_id - self._found.first_id + 1)
            log.info(
                "batch in progress",
                rows=self.predicted,
                errors=self.errors,
                rows_per_s=round(rate),
                percent=round(100 * done),
                eta_s=round((now - self._started) * (1 - done) / done),
            )
