"""The worker in this process, with a real Redis, and model processes that run a small model."""

import asyncio
import os
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import REGISTRY, generate_latest

from serving_common.errors import StartupError
from serving_common.queue.types import POISON, JobStatus
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src.configurations import WorkerSettings
from src.jobs import to_stored
from src.ml.classifier import Classifier
from src.ml.image_cards import imagenet_card, imagenet_form
from src.ml.preprocessing import preprocess
from src.worker.main import create_app
from tests.integration.worker.conftest import ARTIFACTS, LABELS, children, kill
from tests.integration.worker.model import FAILS, HANGS, image_of, images

GOOD = image_of((10, 120, 30))


@asynccontextmanager
async def worker(settings: WorkerSettings):
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


async def final_state(jobs, job_id):
    state = await jobs.get(job_id, 30)
    assert state.status.is_final, state
    return state


def predict_directly(classifier, image, settings):
    pixels = preprocess(image, imagenet_form(settings.resize_mode), max_pixels=settings.max_image_pixels)
    return classifier.classify(pixels[np.newaxis])[0]


def is_same(stored, prediction) -> bool:
    """Equal within rounding: another batch size may change a sum's last bit."""
    expected = to_stored(prediction)
    one, other = ([each["probability"] for each in top5] for top5 in (stored["top5"], expected["top5"]))
    return stored["prediction"] == expected["prediction"] and np.allclose(one, other, atol=1e-5)


def metric(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def cpu_ticks(pid: int) -> int:
    """CPU time that a process has used."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


async def busy_process(pids: list[int]) -> int:
    """The first of these processes that is seen to compute."""
    before = {pid: cpu_ticks(pid) for pid in pids}
    while True:
        await asyncio.sleep(0.1)
        for pid in pids:
            if cpu_ticks(pid) > before[pid] + 10:
                return pid


@pytest.mark.parametrize("batch_size", [1, 4])
async def test_each_image_gets_its_own_result(redis, jobs, classifier, settings, batch_size):
    chosen = settings(batch_size=batch_size, num_workers=2)
    many = images(20)
    ids = [await jobs.enqueue(image) for image in many]
    assert await redis.get(f"image:{ids[0]}") is not None
    async with worker(chosen):
        for job_id, image in zip(ids, many, strict=True):
            prediction = predict_directly(classifier, image, chosen)
            state = await final_state(jobs, job_id)
            assert (state.status, state.result) == (JobStatus.COMPLETED, prediction.label.encode())
            assert is_same((await jobs.details(job_id))["async"], prediction)
            # As specified: the label and nothing else. The image has been deleted.
            assert await redis.get(f"result:{job_id}") == prediction.label.encode()
            assert 3500 < await redis.ttl(f"result:{job_id}") <= 3600
            assert not await redis.exists(f"image:{job_id}")


@needs_promtool
def test_metrics_follow_the_naming_rules():
    page = generate_latest().decode()  # the registry is the process's: its metrics are there before a worker starts
    assert "model_processes_replaced_total" in page
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[3] / "README.md") == []


async def test_invalid_image_fails_without_failing_its_batch(redis, jobs, settings):
    not_an_image = await jobs.enqueue(b"GIF89a, but not really")
    not_base64 = "zzzzzz"
    await redis.set(f"image:{not_base64}", "*", ex=60)
    await redis.lpush("queue:jobs", not_base64)
    good = await jobs.enqueue(GOOD)
    async with worker(settings(batch_size=3)):
        assert (await final_state(jobs, good)).status is JobStatus.COMPLETED
        for job_id in (not_an_image, not_base64):
            state = await final_state(jobs, job_id)
            assert (state.status, state.error) == (JobStatus.FAILED, "Not an image")
            assert await jobs.details(job_id) == {}


async def test_failed_inference_is_retried_three_times(redis, jobs, settings):
    failing = await jobs.enqueue(image_of(FAILS))
    good = await jobs.enqueue(GOOD)
    async with worker(settings(batch_size=2)):
        assert (await final_state(jobs, good)).status is JobStatus.COMPLETED
        state = await final_state(jobs, failing)
    assert (state.status, state.error) == (JobStatus.FAILED, "Model inference failed")
    assert await redis.hget(f"queue:jobs:meta:{failing}", "attempts") == b"4"
    assert await redis.exists(f"image:{failing}")  # kept for inspection


async def test_image_that_times_out_three_times_is_dead_lettered_alone(jobs, settings):
    replaced = metric("model_processes_replaced_total")
    before = [await jobs.enqueue(image) for image in images(2)]
    poison = await jobs.enqueue(image_of(HANGS))
    after = [await jobs.enqueue(image) for image in images(6)]
    async with worker(settings(batch_size=4, inference_timeout_s=1.0)):
        for job_id in before + after:
            assert (await final_state(jobs, job_id)).status is JobStatus.COMPLETED
        state = await final_state(jobs, poison)
        assert (state.status, state.error) == (JobStatus.FAILED, POISON)
        another = await jobs.enqueue(GOOD)
        assert (await final_state(jobs, another)).status is JobStatus.COMPLETED
    # More on a busy machine, where other batches may take a second too.
    assert metric("model_processes_replaced_total") >= replaced + 3


async def test_image_that_kills_its_process_three_times_is_dead_lettered_alone(redis, jobs, settings):
    # The image only keeps its process busy; the test kills that process.
    poison = await jobs.enqueue(image_of(HANGS))
    replaced = metric("model_processes_replaced_total")
    async with worker(settings(num_workers=2, batch_size=1)):
        for deaths in (1, 2, 3):
            others = [await jobs.enqueue(image) for image in images(5)]
            assert [(await final_state(jobs, job_id)).status for job_id in others] == [JobStatus.COMPLETED] * 5
            # A process that is loading the model is busy, too, and its death would not be the image's.
            while metric("model_processes_replaced_total") < replaced + deaths - 1:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            kill(await busy_process(children(os.getpid())))
            while await redis.hget(f"queue:jobs:meta:{poison}", "deaths") != b"%d" % deaths:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await final_state(jobs, poison)).error == POISON
    assert not [key async for key in redis.scan_iter("queue:jobs:meta:*") if poison not in key.decode()]


async def test_idle_process_death_is_replaced_without_quarantine(redis, jobs, settings):
    replaced = metric("model_processes_replaced_total")
    async with worker(settings(num_workers=2)):
        for pid in children(os.getpid()):
            kill(pid)
        async with asyncio.timeout(30):
            while metric("model_processes_replaced_total") < replaced + 2:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.02)
        assert len(children(os.getpid())) == 2
        assert (await final_state(jobs, await jobs.enqueue(GOOD))).status is JobStatus.COMPLETED
    assert not [key async for key in redis.scan_iter("queue:jobs:meta:*")]


async def test_model_processes_run_at_lower_priority(settings):
    own = os.getpriority(os.PRIO_PROCESS, 0)
    async with worker(settings(num_workers=2, worker_nice=3)):
        assert [os.getpriority(os.PRIO_PROCESS, pid) for pid in children(os.getpid())] == [min(own + 3, 19)] * 2


async def test_jobs_wait_while_model_file_is_missing(tmp_path, jobs, settings, model_path, capsys):
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
        assert (await final_state(jobs, job_id)).status is JobStatus.COMPLETED
        assert app.state.processes.is_up


async def test_missing_model_raises_startup_error_and_leaves_no_process(tmp_path, settings):
    with pytest.raises(StartupError, match="there is no model at"):
        async with worker(settings(async_model_path=tmp_path / "missing.onnx", num_workers=2)):
            pytest.fail("started")
    assert children(os.getpid()) == []


async def test_resnet50_result_equals_direct_inference(jobs, settings):
    if not (ARTIFACTS / "resnet50.onnx").exists():
        pytest.skip("models/artifacts/resnet50.onnx has not been built")
    photograph = files("sklearn.datasets.images").joinpath("china.jpg").read_bytes()
    chosen = settings(async_model_path=ARTIFACTS / "resnet50.onnx")
    job_id = await jobs.enqueue(photograph)
    async with worker(chosen):
        assert (await final_state(jobs, job_id)).status is JobStatus.COMPLETED
    prediction = predict_directly(Classifier.load(imagenet_card(chosen.async_model_path, LABELS)), photograph, chosen)
    assert is_same((await jobs.details(job_id))["async"], prediction)


async def test_worker_is_ready_with_heartbeat_and_process(redis, settings):
    async with worker(settings(heartbeat_s=60)) as app:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
            assert (await client.get("/health/live")).json() == {"status": "alive"}
            async with asyncio.timeout(30):
                while (await client.get("/health/ready")).status_code != 200:  # noqa: ASYNC110 - no event says so
                    await asyncio.sleep(0.01)

            [process] = app.state.processes._all
            process.is_up = False  # as after its death
            response = await client.get("/health/ready")
            assert (response.status_code, response.json()["reason"]) == (503, "no model process is up")
            process.is_up = True
