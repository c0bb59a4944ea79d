"""The worker between a real Redis and real processes with a real, small model."""

import asyncio
import os
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from src.configurations import WorkerSettings
from src.jobs import to_stored
from src.ml.classifier import Classifier
from src.ml.preprocessing import preprocess
from src.worker.main import create_app

from serving_common.errors import StartupError
from serving_common.queue.types import POISON, JobStatus
from tests.integration.worker.conftest import ARTIFACTS, LABELS, children, kill
from tests.integration.worker.model import FAILS, HANGS, image_of, images

GOOD = image_of((10, 120, 30))


@asynccontextmanager
async def worker(settings: WorkerSettings):
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


async def ends(jobs, job_id):
    state = await jobs.get(job_id, 30)
    assert state.status.is_final, state
    return state


def expected(classifier, image, settings):
    pixels = preprocess(image, resize_mode=settings.resize_mode, max_pixels=settings.max_image_pixels)
    return classifier.classify(pixels[np.newaxis])[0]


def is_same(got, prediction) -> bool:
    """Batches of other sizes may differ in a sum's last bit."""
    wanted = to_stored(prediction)
    one, other = ([each["probability"] for each in top5] for top5 in (got["top5"], wanted["top5"]))
    return got["prediction"] == wanted["prediction"] and np.allclose(one, other, atol=1e-5)


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def ticks(pid: int) -> int:
    """The time that a process has had on the processor."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


async def busy(pids: list[int]) -> int:
    """The process that computes at the moment."""
    before = {pid: ticks(pid) for pid in pids}
    while True:
        await asyncio.sleep(0.1)
        for pid in pids:
            if ticks(pid) > before[pid] + 10:
                return pid


@pytest.mark.parametrize("batch_size", [1, 4])
async def test_each_image_gets_its_own_answer(redis, jobs, classifier, settings, batch_size):
    chosen = settings(batch_size=batch_size, num_workers=2)
    many = images(20)
    ids = [await jobs.enqueue(image) for image in many]
    assert await redis.get(f"image:{ids[0]}") is not None
    async with worker(chosen):
        for job_id, image in zip(ids, many, strict=True):
            prediction = expected(classifier, image, chosen)
            state = await ends(jobs, job_id)
            assert (state.status, state.result) == (JobStatus.COMPLETED, prediction.label.encode())
            assert is_same((await jobs.details(job_id))["async"], prediction)
            # As the specification has it: the name and nothing else; and of the image nothing is left.
            assert await redis.get(f"result:{job_id}") == prediction.label.encode()
            assert 3500 < await redis.ttl(f"result:{job_id}") <= 3600
            assert not await redis.exists(f"image:{job_id}")


async def test_what_is_no_image_fails_alone(redis, jobs, settings):
    not_an_image = await jobs.enqueue(b"GIF89a, but not really")
    not_base64 = "zzzzzz"
    await redis.set(f"image:{not_base64}", "*", ex=60)
    await redis.lpush("queue:jobs", not_base64)
    good = await jobs.enqueue(GOOD)
    async with worker(settings(batch_size=3)):
        assert (await ends(jobs, good)).status is JobStatus.COMPLETED
        for job_id in (not_an_image, not_base64):
            state = await ends(jobs, job_id)
            assert (state.status, state.error) == (JobStatus.FAILED, "Not an image")
            assert await jobs.details(job_id) == {}


async def test_a_model_that_fails_is_asked_three_times_more(redis, jobs, settings):
    failing = await jobs.enqueue(image_of(FAILS))
    good = await jobs.enqueue(GOOD)
    async with worker(settings(batch_size=2)):
        assert (await ends(jobs, good)).status is JobStatus.COMPLETED
        state = await ends(jobs, failing)
    assert (state.status, state.error) == (JobStatus.FAILED, "Model inference failed")
    assert await redis.hget(f"queue:jobs:meta:{failing}", "attempts") == b"4"
    assert await redis.exists(f"image:{failing}")  # for whoever wants to know why


async def test_an_image_that_takes_for_ever_three_times_is_poison_and_takes_nobody_along(jobs, settings):
    replaced = metric("model_processes_replaced_total")
    before = [await jobs.enqueue(image) for image in images(2)]
    poison = await jobs.enqueue(image_of(HANGS))
    after = [await jobs.enqueue(image) for image in images(6)]
    async with worker(settings(batch_size=4, inference_timeout_s=1.0)):
        for job_id in before + after:
            assert (await ends(jobs, job_id)).status is JobStatus.COMPLETED
        state = await ends(jobs, poison)
        assert (state.status, state.error) == (JobStatus.FAILED, POISON)
        another = await jobs.enqueue(GOOD)
        assert (await ends(jobs, another)).status is JobStatus.COMPLETED
    # More, where the machine has so much to do that others take a second, too.
    assert metric("model_processes_replaced_total") >= replaced + 3


async def test_an_image_that_kills_its_process_three_times_is_poison_and_takes_nobody_along(redis, jobs, settings):
    # It does not kill by itself: it holds the process that has it, until that is killed.
    poison = await jobs.enqueue(image_of(HANGS))
    async with worker(settings(num_workers=2, batch_size=1)):
        for deaths in (b"1", b"2", b"3"):
            others = [await jobs.enqueue(image) for image in images(5)]
            assert [(await ends(jobs, job_id)).status for job_id in others] == [JobStatus.COMPLETED] * 5
            kill(await busy(children(os.getpid())))
            while await redis.hget(f"queue:jobs:meta:{poison}", "deaths") != deaths:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await ends(jobs, poison)).error == POISON
    assert not [key async for key in redis.scan_iter("queue:jobs:meta:*") if poison not in key.decode()]


async def test_a_process_that_dies_idle_is_replaced_and_no_job_suspected(redis, jobs, settings):
    replaced = metric("model_processes_replaced_total")
    async with worker(settings(num_workers=2)):
        for pid in children(os.getpid()):
            kill(pid)
        async with asyncio.timeout(30):
            while metric("model_processes_replaced_total") < replaced + 2:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.02)
        assert len(children(os.getpid())) == 2
        assert (await ends(jobs, await jobs.enqueue(GOOD))).status is JobStatus.COMPLETED
    assert not [key async for key in redis.scan_iter("queue:jobs:meta:*")]


async def test_processes_give_way_to_the_proxy(settings):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    async with worker(settings(num_workers=2, worker_nice=3)):
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in children(os.getpid())] == [min(own + 3, 19)] * 2


async def test_a_model_that_is_gone_is_waited_for(tmp_path, jobs, settings, model_path, capsys):
    model = tmp_path / "model.onnx"
    model.write_bytes(model_path.read_bytes())
    async with worker(settings(async_model_path=model)) as app:
        model.rename(tmp_path / "elsewhere.onnx")
        (pid,) = children(os.getpid())
        kill(pid)
        job_id = await jobs.enqueue(GOOD)
        while "model_process_not_started" not in capsys.readouterr().out:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        assert not app.state.processes.is_up
        (tmp_path / "elsewhere.onnx").rename(model)
        assert (await ends(jobs, job_id)).status is JobStatus.COMPLETED
        assert app.state.processes.is_up


async def test_a_missing_model_is_a_startup_error_and_leaves_no_process(tmp_path, settings):
    with pytest.raises(StartupError, match="there is no model at"):
        async with worker(settings(async_model_path=tmp_path / "missing.onnx", num_workers=2)):
            pytest.fail("started")
    assert children(os.getpid()) == []


async def test_the_real_model_says_what_it_says_without_us(jobs, settings):
    if not (ARTIFACTS / "resnet50.onnx").exists():
        pytest.skip("models/artifacts/resnet50.onnx has not been built")
    photograph = files("sklearn.datasets.images").joinpath("china.jpg").read_bytes()
    chosen = settings(async_model_path=ARTIFACTS / "resnet50.onnx")
    job_id = await jobs.enqueue(photograph)
    async with worker(chosen):
        assert (await ends(jobs, job_id)).status is JobStatus.COMPLETED
    prediction = expected(Classifier.load(chosen.async_model_path, LABELS), photograph, chosen)
    assert is_same((await jobs.details(job_id))["async"], prediction)
