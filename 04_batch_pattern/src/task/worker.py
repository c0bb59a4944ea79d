"""Inference in parallel: a chunk of rows is cut into slices, each of them one model run on one of the threads."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from pydantic import ValidationError

from src.db.cruds import ClaimedItem
from src.ml.prediction import IrisClassifier


@dataclass(frozen=True, slots=True)
class Outcome:
    """Every row is in one of the two, by its id."""

    predictions: dict[int, str] = field(default_factory=dict)  # JSON
    errors: dict[int, str] = field(default_factory=dict)  # the reason why there is no prediction


def predict_all(
    executor: Executor, classifier: IrisClassifier, rows: Sequence[ClaimedItem], slice_size: int
) -> Outcome:
    """Predict every row that can be predicted."""
    slices = [rows[start : start + slice_size] for start in range(0, len(rows), slice_size)]
    return _joined(executor.map(partial(_predict_slice, classifier), slices))


def _predict_slice(classifier: IrisClassifier, rows: Sequence[ClaimedItem]) -> Outcome:
    """One run for all rows; if that does not work out, one for each, so that a bad row spoils nothing but itself."""
    try:
        predictions = classifier.predict([row.values for row in rows])
        return Outcome(predictions=dict(zip([row.id for row in rows], predictions, strict=True)))
    except Exception as exc:  # noqa: BLE001 - whatever it was, the row gets it and the others go on
        if len(rows) == 1:
            return Outcome(errors={rows[0].id: _reason(exc)})
    return _joined(_predict_slice(classifier, [row]) for row in rows)


def _joined(parts: Iterable[Outcome]) -> Outcome:
    whole = Outcome()
    for part in parts:
        whole.predictions.update(part.predictions)
        whole.errors.update(part.errors)
    return whole


def _reason(exc: Exception) -> str:
    if isinstance(exc, ValidationError):
        first = exc.errors(include_url=False)[0]
        return f"values{''.join(f'[{index}]' for index in first['loc'][1:])}: {first['msg']}"
    return f"{type(exc).__name__}: {exc}"
