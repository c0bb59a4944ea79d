"""The inference worker: splits a chunk of rows into slices, each of them one model run on one of the threads."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from pydantic import ValidationError

from src.db.cruds import ClaimedItem
from src.ml.prediction import BatchPredictor, NotFinite


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every row of a chunk by its id, in one of the two."""

    predictions: dict[int, str] = field(default_factory=dict)  # JSON
    errors: dict[int, str] = field(default_factory=dict)  # why the row cannot be predicted

    @property
    def last_id(self) -> int:
        return max([*self.predictions, *self.errors])


def predict_all(executor: Executor, predictor: BatchPredictor, rows: Sequence[ClaimedItem], slice_size: int) -> Outcome:
    """Predict every valid row; the others are reported in `errors`."""
    slices = [rows[start : start + slice_size] for start in range(0, len(rows), slice_size)]
    return _merge(executor.map(partial(_predict_slice, predictor), slices))


def _predict_slice(predictor: BatchPredictor, rows: Sequence[ClaimedItem]) -> Outcome:
    """One model run for all rows; if it fails, one run per row, so that an invalid row affects only itself."""
    try:
        predictions = predictor.predict([row.values for row in rows])
        return Outcome(predictions=dict(zip([row.id for row in rows], predictions, strict=True)))
    except Exception as exc:  # noqa: BLE001 - recorded for the row that caused it; the others go on
        if len(rows) == 1:
            return Outcome(errors={rows[0].id: _reason(exc)})
    return _merge(_predict_slice(predictor, [row]) for row in rows)


def _merge(parts: Iterable[Outcome]) -> Outcome:
    merged = Outcome()
    for part in parts:
        merged.predictions.update(part.predictions)
        merged.errors.update(part.errors)
    return merged


def _reason(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        error = exc.errors(include_url=False)[0]
        return f"values{''.join(f'[{index}]' for index in error['loc'][1:])}: {error['msg']}"
    return str(exc) if isinstance(exc, NotFinite) else f"{type(exc).__name__}: {exc}"
