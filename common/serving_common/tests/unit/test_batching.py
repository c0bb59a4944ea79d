import asyncio
import threading
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving_common import batching
from serving_common.batching import MicroBatcher
from serving_common.errors import Overloaded, Unavailable
from serving_common.onnx import FloatArray, OnnxModel, RunOptions


class BlockingModel:
    """A model whose runs block until released. `runs` has the number of rows of each run."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.released = threading.Semaphore(0)
        self.runs: list[int] = []
        self.options: list[RunOptions | None] = []

    def run(self, batch: FloatArray, options: RunOptions | None = None, /) -> FloatArray:
        self.runs.append(len(batch))
        self.options.append(options)
        self.entered.release()
        assert self.released.acquire(timeout=30)
        return batch * 2

    async def wait_until_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=30)

    def release(self, runs: int = 1) -> None:
        self.released.release(runs)


def rows(*values: float) -> FloatArray:
    return np.array([[value] for value in values], np.float32)


@given(st.lists(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=5), min_size=1, max_size=20))
@settings(deadline=None, max_examples=30)
def test_each_caller_gets_the_output_for_its_own_rows(requests):
    async def predict_at_once() -> list[FloatArray]:
        async with MicroBatcher(lambda batch, _=None: batch * 2, max_rows=7) as batcher:
            return await asyncio.gather(*(batcher.predict(rows(*request)) for request in requests))

    for request, answer in zip(requests, asyncio.run(predict_at_once()), strict=True):
        np.testing.assert_array_equal(answer, rows(*request) * 2)


async def test_requests_during_a_run_share_the_next_run():
    model = BlockingModel()
    async with MicroBatcher(model.run) as batcher:
        first = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        others = [asyncio.create_task(batcher.predict(rows(value))) for value in (2, 3, 4)]
        await asyncio.sleep(0)  # lets the three requests start
        model.release(2)
        await asyncio.gather(first, *others)

    assert model.runs == [1, 3]


async def test_run_is_limited_to_max_rows():
    model = BlockingModel()
    async with MicroBatcher(model.run, max_rows=4) as batcher:
        first = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        others = [asyncio.create_task(batcher.predict(rows(*range(size)))) for size in (3, 2, 9, 1)]
        await asyncio.sleep(0)
        model.release(5)
        await asyncio.gather(first, *others)

    assert model.runs == [1, 3, 2, 9, 1]


async def test_full_queue_raises_overloaded():
    model = BlockingModel()
    async with MicroBatcher(model.run, max_waiting=1) as batcher:
        running = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        waiting = asyncio.create_task(batcher.predict(rows(2)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await batcher.predict(rows(3))
        model.release(2)
        await asyncio.gather(running, waiting)


async def test_cancelled_caller_does_not_affect_the_others():
    model = BlockingModel()
    async with MicroBatcher(model.run) as batcher:
        cancelled = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        other = asyncio.create_task(batcher.predict(rows(2)))
        cancelled.cancel()
        model.release(2)
        assert (await other).tolist() == [[4]]


async def test_cancelled_and_unwanted_requests_do_not_run():
    model = BlockingModel()
    async with MicroBatcher(model.run) as batcher:
        running = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        cancelled = asyncio.create_task(batcher.predict(rows(2, 2)))
        unwanted = asyncio.create_task(batcher.predict(rows(3, 3, 3), lambda: False))
        wanted = asyncio.create_task(batcher.predict(rows(4, 4, 4, 4), lambda: True))
        await asyncio.sleep(0)
        cancelled.cancel()
        model.release(2)
        await asyncio.gather(running, wanted)
        with pytest.raises(Unavailable):
            await unwanted
        with pytest.raises(Unavailable):
            await batcher.predict(rows(5), lambda: False)  # alone

    assert model.runs == [1, 4]


async def test_run_ends_once_nobody_waits_for_its_output(slow_model):
    model = OnnxModel.load(slow_model, input_shape=(None, 4), output_shape=(None, 1))
    endless, quick = np.full((1, 4), 1e12, np.float32), np.ones((1, 4), np.float32)
    async with MicroBatcher(model.run) as batcher:
        cancelled = asyncio.create_task(batcher.predict(endless))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        assert (await asyncio.wait_for(batcher.predict(quick), 60)).tolist() == [[4]]

        waits = iter([True, True])  # before it runs, and at one look
        with pytest.raises(Unavailable):
            await asyncio.wait_for(batcher.predict(endless, lambda: next(waits, False)), 60)
        assert (await asyncio.wait_for(batcher.predict(quick), 60)).tolist() == [[4]]


async def test_run_goes_on_while_one_of_its_callers_waits(monkeypatch):
    monkeypatch.setattr(batching, "WATCH_S", 0.001)
    model = BlockingModel()
    async with MicroBatcher(model.run) as batcher:
        first = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        looks, seen_often = count(), asyncio.Event()

        def still_waits() -> bool:
            if next(looks) == 10:
                seen_often.set()
            return True

        gone = asyncio.create_task(batcher.predict(rows(2)))
        waiting = asyncio.create_task(batcher.predict(rows(3), still_waits))
        await asyncio.sleep(0)
        model.release()
        await first
        await model.wait_until_entered()
        gone.cancel()
        assert await asyncio.wait_for(seen_often.wait(), 60)
        assert [options and options.terminate for options in model.options] == [False, False]
        model.release()
        assert (await waiting).tolist() == [[6]]


async def test_failed_run_fails_only_its_own_callers():
    answers = iter([ValueError("no"), None])

    def run(batch: FloatArray, _: object = None) -> FloatArray:
        if error := next(answers):
            raise error
        return batch

    async with MicroBatcher(run) as batcher:
        failed = await asyncio.gather(batcher.predict(rows(1)), batcher.predict(rows(2)), return_exceptions=True)
        assert [str(error) for error in failed] == ["no", "no"]
        assert (await batcher.predict(rows(3))).tolist() == [[3]]


async def test_close_waits_for_requests_in_flight():
    model = BlockingModel()
    async with MicroBatcher(model.run) as batcher:
        pending = asyncio.create_task(batcher.predict(rows(1)))
        await model.wait_until_entered()
        model.release()

    assert pending.done()
    assert (await pending).tolist() == [[2]]


class ThreadedModel(BlockingModel):
    """Batches of more than 64 rows block. `threads` has the thread of each run."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []

    def run(self, batch: FloatArray, options: RunOptions | None = None, /) -> FloatArray:
        self.threads.append(threading.current_thread())
        return super().run(batch, options) if len(batch) > 64 else batch * 2


async def test_small_batches_of_a_fast_model_run_on_the_loop():
    model = ThreadedModel()
    async with MicroBatcher(model.run) as batcher:
        await batcher.predict(rows(1))
        assert await batcher.allow_loop_runs(rows(1), bound_us=10_000_000) == 64
        assert threading.current_thread() not in model.threads
        model.threads.clear()
        assert (await batcher.predict(rows(*range(64)))).tolist() == (rows(*range(64)) * 2).tolist()
        model.release()
        await batcher.predict(rows(*range(65)))
        with pytest.raises(Unavailable):
            await batcher.predict(rows(1), lambda: False)

    on_loop, on_thread = model.threads
    assert on_loop is threading.current_thread()
    assert on_thread is not on_loop


async def test_nothing_runs_on_the_loop_while_the_thread_has_work():
    """Requests keep their order, and never are two runs at once."""
    model = ThreadedModel()
    async with MicroBatcher(model.run) as batcher:
        await batcher.allow_loop_runs(rows(1), bound_us=10_000_000)
        model.threads.clear()
        large = asyncio.create_task(batcher.predict(rows(*range(65))))
        await model.wait_until_entered()
        small = asyncio.create_task(batcher.predict(rows(3)))
        await asyncio.sleep(0)
        assert len(model.threads) == 1
        model.release()
        assert (await small).tolist() == [[6]]
        await large

    assert threading.current_thread() not in model.threads
