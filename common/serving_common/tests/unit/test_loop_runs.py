import time

import numpy as np
import pytest
from structlog.testing import capture_logs

from serving_common.loop_runs import MAX_ROWS, OFF_LOOP_S, OVERRUNS, TRIES, LoopRuns
from serving_common.onnx import FloatArray

ROW = np.ones((1, 4), np.float32)


class TimedModel:
    """A model that takes the CPU time that the test says."""

    def __init__(self) -> None:
        self.us_per_row: float = 10
        self.cpu_s = self.now = 0.0
        self.runs = 0

    def run(self, batch: FloatArray) -> FloatArray:
        self.runs += 1
        self.cpu_s += self.us_per_row * len(batch) / 1e6
        return batch


@pytest.fixture
def model(monkeypatch) -> TimedModel:
    model = TimedModel()
    monkeypatch.setattr(time, "thread_time", lambda: model.cpu_s)
    monkeypatch.setattr(time, "monotonic", lambda: model.now)
    return model


@pytest.mark.parametrize(
    ("us_per_row", "bound_us", "rows", "runs"),
    [
        pytest.param(10, 100, 4, 3 + TRIES, id="half the bound"),
        pytest.param(0.1, 100, MAX_ROWS, 7, id="at most MAX_ROWS"),
        pytest.param(60, 100, 0, TRIES, id="one row takes more than half"),
        pytest.param(1e6, 100, 0, 1, id="a second per row, run only once"),
        pytest.param(0.1, 0, 0, 0, id="turned off"),
    ],
)
def test_rows_are_limited_by_what_they_were_measured_to_take(model, us_per_row, bound_us, rows, runs):
    model.us_per_row = us_per_row
    loop_runs = LoopRuns.measure(model.run, ROW, bound_us)

    assert loop_runs.max_rows == rows
    assert model.runs == runs
    assert [loop_runs.allows(each) for each in (rows or 1, rows + 1)] == [rows > 0, False]


def test_outliers_at_warm_up_do_not_count(model):
    def noisy(batch):
        model.us_per_row = 60 if model.runs % 3 else 1
        return model.run(batch)

    assert LoopRuns.measure(noisy, ROW, 200).max_rows == MAX_ROWS


def test_a_run_that_is_far_over_the_bound_leaves_the_loop_at_once(model):
    loop_runs = LoopRuns(MAX_ROWS, 100)
    loop_runs.run(model.run, ROW)
    model.us_per_row = 10_000
    with capture_logs() as logs:
        loop_runs.run(model.run, ROW)

    assert not loop_runs.allows(1)
    assert [(line["event"], line["run_us"]) for line in logs] == [("model_left_event_loop", 10_000)]


@pytest.mark.parametrize(("us_per_row", "comes_back"), [(10, True), (120, False)])
def test_a_model_that_has_left_the_loop_is_tried_again_later(model, us_per_row, comes_back):
    loop_runs = LoopRuns(MAX_ROWS, 100)
    model.us_per_row = 120
    while loop_runs.allows(1):
        loop_runs.run(model.run, ROW)
    assert model.runs == OVERRUNS

    model.now += OFF_LOOP_S
    assert loop_runs.allows(1)
    model.us_per_row = us_per_row
    for _ in range(OVERRUNS):
        loop_runs.run(model.run, ROW)
    assert loop_runs.allows(1) == comes_back


def test_outliers_do_not_count(model):
    loop_runs = LoopRuns(MAX_ROWS, 100)
    for number in range(100):
        model.us_per_row = 10 if number % OVERRUNS == 0 else 500
        loop_runs.run(model.run, ROW)

    assert loop_runs.allows(1)


def test_a_failing_run_counts(model):
    def fails(batch):
        model.run(batch)
        raise ValueError("no")

    model.us_per_row = 10_000
    loop_runs = LoopRuns(MAX_ROWS, 100)
    with pytest.raises(ValueError, match="no"):
        loop_runs.run(fails, ROW)

    assert not loop_runs.allows(1)
