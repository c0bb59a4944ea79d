"""The worker between a real Redis and a gRPC server that fails on demand."""

import asyncio
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import grpc
import httpx
import orjson
import pytest
import structlog
from prometheus_client import REGISTRY, generate_latest

from serving_common import tracing
from serving_common.queue.types import POISON, JobStatus, Priority
from serving_common.queue.worker import Worker
from serving_testing.processes import Process, answers, free_port, running, wait_until
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src import jobs
from src.configurations import WorkerSettings
from src.constants import TIMEOUT_ERROR
from src.jobs import rows_adapter
from src.tf_serving import ModelCrashed, ModelUnavailable
from src.worker.consumer import process
from src.worker.main import create_app
from tests.conftest import PATTERN
from tests.integration.model import BAD
from tfserving_protos import channels

GOOD_ROWS = [[5.1, 3.5, 1.4, 0.2]]
BAD_ROWS = [[BAD, 1.0, 1.0, 1.0]]


@pytest.fixture
def settings(redis_server, model):
    def make(**overrides) -> WorkerSettings:
        return WorkerSettings(
            **{
                "redis_host": "127.0.0.1",
                "redis_port": redis_server.port,
                "tf_serving_host": "127.0.0.1",
                "tf_serving_grpc_port": model.port,
                "heartbeat_s": 1,
                **overrides,
            }
        )

    return make


@asynccontextmanager
async def worker(settings: WorkerSettings):
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        yield app


async def submit(queue, *many):
    return [await jobs.submit(queue, rows, Priority.NORMAL, None) for rows in many]


def processed(outcome) -> float:
    return REGISTRY.get_sample_value("jobs_processed_total", {"outcome": outcome}) or 0


async def wait_for_end(queue, job_id):
    state = await queue.wait(job_id, 20)
    assert state.status.is_final, state
    return state


async def test_waiting_jobs_share_one_predict_call(queue, model, settings):
    ids = await submit(queue, *[GOOD_ROWS] * 20)
    async with worker(settings(num_workers=1)):
        ended = [jobs.describe(await wait_for_end(queue, job_id)) for job_id in ids]

    assert model.batches == [20]
    assert ended[0] == {
        "job_id": ids[0],
        "status": "completed",
        "result": {"prediction": 1, "class_name": "versicolor", "probabilities": pytest.approx([0.1, 0.7, 0.2])},
    }


async def test_the_model_server_learns_the_request_of_a_batch_unless_there_are_several(queue, model, settings):
    for request_id in ("order-7", "order-7"), ("order-8", "order-9"):
        ids = []
        for each in request_id:
            tracing.request_id.set(each)
            ids += await submit(queue, GOOD_ROWS)
        async with worker(settings(num_workers=1)):
            for job_id in ids:
                await wait_for_end(queue, job_id)
    assert model.batches == [2, 2]
    assert model.request_ids == ["order-7", None]


@needs_promtool
async def test_metrics_follow_the_naming_rules(queue, settings):
    async with worker(settings()):
        await wait_for_end(queue, *await submit(queue, GOOD_ROWS))
        page = generate_latest().decode()
        assert naming_problems(page) == []
        assert undocumented(page, Path(__file__).parents[2] / "README.md") == []


async def test_each_job_gets_the_result_of_its_own_rows(queue, settings):
    one, three = await submit(queue, GOOD_ROWS, GOOD_ROWS * 3)
    async with worker(settings()):
        for job_id, prediction in ((one, 1), (three, [1, 1, 1])):
            result = jobs.describe(await wait_for_end(queue, job_id))["result"]
            assert result.get("prediction") == prediction


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, "Model inference failed: bad row"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, TIMEOUT_ERROR),
    ],
)
async def test_a_poison_job_fails_after_three_retries_and_delays_no_other(queue, model, settings, failure, error):
    model.failure = failure
    counted = processed("completed"), processed("retried"), processed("failed")
    poison, *others = await submit(queue, BAD_ROWS, *[GOOD_ROWS] * 5)
    async with worker(settings(num_workers=1)):
        assert [(await wait_for_end(queue, job_id)).status for job_id in others] == ["completed"] * 5
        failed = await wait_for_end(queue, poison)

    assert (failed.status, failed.error) == (JobStatus.FAILED, error)
    assert await queue.dead_letters() == [poison]
    assert (processed("completed"), processed("retried"), processed("failed")) == (
        counted[0] + 5,
        counted[1] + 6 + 3,
        counted[2] + 1,
    )
    # Once all together, then each job alone, with three retries of the poison job.
    assert model.batches == [6] + [1] * (1 + 5 + 3)


async def test_a_slow_model_fails_the_job_with_a_timeout(redis, queue, model, settings):
    model.released.clear()
    (job_id,) = await submit(queue, GOOD_ROWS)
    async with worker(settings(tf_serving_timeout_s=0.1, max_retries=1)):
        assert (await wait_for_end(queue, job_id)).error == TIMEOUT_ERROR
    # Not by the calls that arrive: on a slow machine, one may be late before it is sent.
    assert await redis.hget(f"queue:predict:meta:{job_id}", "attempts") == b"2"


async def test_an_unavailable_model_server_uses_up_no_try(redis, queue, model, settings):
    model.is_unavailable = True
    first, second = await submit(queue, GOOD_ROWS, GOOD_ROWS)
    async with worker(settings(num_workers=1)):
        async with asyncio.timeout(20):
            while len(model.batches) < 6:  # noqa: ASYNC110 - more often than a job may fail
                await asyncio.sleep(0.01)
        model.is_unavailable = False
        assert [(await wait_for_end(queue, job_id)).status for job_id in (first, second)] == ["completed"] * 2

    assert not await redis.exists(f"queue:predict:meta:{first}")
    assert model.batches[-1] == 2


async def test_jobs_stay_pending_while_the_model_server_is_unreachable(queue, settings):
    (job_id,) = await submit(queue, GOOD_ROWS)
    seen = Counter[JobStatus]()
    with structlog.testing.capture_logs() as logs:
        async with worker(settings(tf_serving_grpc_port=free_port())):
            await asyncio.to_thread(wait_until, lambda: len(logs) > 5)
            for _ in range(50):
                seen[(await queue.get(job_id)).status] += 1
                await asyncio.sleep(0.02)

    assert seen == {JobStatus.PENDING: 50}


@pytest.mark.parametrize("count", [1, 2])
async def test_a_job_that_kills_model_servers_three_times_fails_as_poison(queue, settings, tmp_path, count):
    ports = [free_port() for _ in range(count)]
    kills = 0
    (poison,) = await submit(queue, BAD_ROWS)
    with ExitStack() as stack:

        def start(port: int) -> Process:
            process = running(f"tests.integration.model {port}", cwd=PATTERN, env={}, log=tmp_path / "log")
            return stack.enter_context(process)

        def restart_exited() -> int:
            exited = [port for port, server in servers.items() if server.popen.poll() is not None]
            servers.update({port: start(port) for port in exited})
            return len(exited)

        servers = {port: start(port) for port in ports}
        target = channels.target(",".join(f"127.0.0.1:{port}" for port in ports))
        async with worker(settings(num_workers=1, tf_serving_target=target)):
            waiting = asyncio.create_task(wait_for_end(queue, poison))
            async with asyncio.timeout(60):
                # A connection breaks a moment before its process has ended.
                while not waiting.done() or kills < 3:
                    kills += restart_exited()
                    await asyncio.sleep(0.02)
            failed = await waiting
            (good,) = await submit(queue, GOOD_ROWS)
            assert (await wait_for_end(queue, good)).status is JobStatus.COMPLETED

    assert (failed.status, failed.error, kills) == (JobStatus.FAILED, POISON, 3)


class Gone:
    """A model server that has died, over a connection that does not show it yet."""

    async def connect(self) -> None:
        pass

    async def why_unavailable(self, within_s: float) -> str | None:
        return "TensorFlow Serving: Socket closed"

    async def why_mismatch(self, within_s: float) -> str | None:
        return None

    async def predict(self, rows):
        raise ModelCrashed("gone")


async def test_a_death_is_counted_once_for_a_job(redis, queue, settings):
    """By the worker that had it in flight, not by those whose connections break a moment later."""
    settings = settings()
    worker = Worker(redis, settings.keys)
    [job_id] = await submit(queue, GOOD_ROWS)
    adapter = rows_adapter(settings.card)
    for expected in (ModelCrashed, ModelUnavailable, ModelUnavailable, ModelUnavailable):
        jobs = await worker.claim(1)
        with pytest.raises(ModelUnavailable) as raised:
            await process(worker, Gone(), settings.card, adapter, jobs)
        assert raised.type is expected
        await worker.requeue([job for job in jobs if worker.holds(job)])
    assert (await queue.get(job_id)).status is JobStatus.PENDING
    assert await redis.hget(f"{settings.keys.queue}:meta:{job_id}", "deaths") == b"1"


async def test_malformed_data_fails_only_its_own_job(redis, queue, settings):
    await redis.set("job:zzzzzz:data", "nonsense", ex=60)
    await redis.lpush("queue:predict", "zzzzzz")
    (good,) = await submit(queue, GOOD_ROWS)
    async with worker(settings()):
        assert (await wait_for_end(queue, good)).status is JobStatus.COMPLETED
        assert (await wait_for_end(queue, "zzzzzz")).error == "Invalid input"


async def test_a_stopping_worker_finishes_jobs_in_flight(queue, model, settings):
    model.released.clear()
    (in_flight,) = await submit(queue, GOOD_ROWS)
    async with worker(settings()):
        await model.entered.wait()
        asyncio.get_running_loop().call_later(0.1, model.released.set)

    assert (await queue.get(in_flight)).status is JobStatus.COMPLETED


async def test_a_stopping_worker_requeues_unfinished_jobs(redis, queue, model, settings):
    model.released.clear()
    ids = await submit(queue, GOOD_ROWS, GOOD_ROWS)
    async with worker(settings(shutdown_grace_s=1, num_workers=1)):
        await model.entered.wait()

    async with asyncio.timeout(20):
        await model.cancelled.wait()  # the model server does not go on with it
    assert await redis.lrange("queue:predict", 0, -1) == [job_id.encode() for job_id in ids[::-1]]
    assert [(await queue.get(job_id)).status for job_id in ids] == ["pending"] * 2
    assert not await redis.exists(f"queue:predict:meta:{ids[0]}")
    assert (await queue.stats()).workers == 0


async def test_results_survive_a_redis_restart(redis_server, queue, model, settings):
    model.released.clear()
    (job_id,) = await submit(queue, GOOD_ROWS)
    async with worker(settings(num_workers=1)):
        await model.entered.wait()
        with structlog.testing.capture_logs() as logs:
            redis_server.kill()
            model.released.set()
            await asyncio.to_thread(wait_until, lambda: any(line["event"] == "redis_failed" for line in logs))
        await asyncio.to_thread(redis_server.start)
        assert (await wait_for_end(queue, job_id)).status is JobStatus.COMPLETED
    assert model.batches == [1]


async def test_a_worker_can_stop_while_redis_is_unavailable(redis_server, queue, settings):
    (job_id,) = await submit(queue, GOOD_ROWS)
    with structlog.testing.capture_logs() as logs:
        async with worker(settings(shutdown_grace_s=1)):
            await wait_for_end(queue, job_id)
            redis_server.kill()
    await asyncio.to_thread(redis_server.start)

    assert "claims_left_behind" in [line["event"] for line in logs]


async def test_a_job_cancelled_in_flight_stays_cancelled(queue, model, settings):
    model.released.clear()
    (job_id,) = await submit(queue, GOOD_ROWS)
    async with worker(settings()):
        await model.entered.wait()
        await jobs.cancel(queue, job_id)
        model.released.set()

    assert jobs.describe(await queue.get(job_id)) == {"job_id": job_id, "status": "cancelled"}
    assert (await queue.stats()).processing == 0


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        pytest.param([0.1, 0.1, 0.1, 0.7], "4 values for 1 rows, of which each has 3", id="four classes"),
        pytest.param([0.3, 0.7], "2 values for 1 rows, of which each has 3", id="two classes"),
        pytest.param([0.3, float("nan"), 0.7], "the answer to row 0 is not a finite number", id="not a number"),
    ],
)
async def test_a_malformed_model_response_fails_the_job_but_not_the_worker(queue, model, settings, answer, error):
    model.answer = answer
    (job_id,) = await submit(queue, GOOD_ROWS)
    async with worker(settings(max_retries=1)):
        assert (await wait_for_end(queue, job_id)).error == f"Model inference failed: {error}"
        model.answer = [0.1, 0.7, 0.2]
        (good,) = await submit(queue, GOOD_ROWS)
        assert (await wait_for_end(queue, good)).status is JobStatus.COMPLETED


async def test_workers_on_one_machine_choose_free_ports(redis, redis_server, tmp_path):
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port)}
    with ExitStack() as stack:
        logs = [tmp_path / "one", tmp_path / "other"]
        workers = [stack.enter_context(running("src.worker.main", cwd=PATTERN, env=env, log=log)) for log in logs]
        await asyncio.to_thread(wait_until, lambda: all("service_started" in worker.log for worker in workers))

        lines = [orjson.loads(line) for worker in workers for line in worker.log.splitlines() if "started" in line]
        urls = {f"http://127.0.0.1:{line['port']}/health" for line in lines}
        assert len(urls) == 2
        await asyncio.to_thread(wait_until, lambda: all(map(answers, urls)))


async def test_readiness_needs_a_heartbeat_and_the_model(redis, settings):
    async def get(app, path) -> tuple[int, dict[str, str]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://worker") as client:
            response = await client.get(path)
        return response.status_code, response.json()

    async with worker(settings()) as app:
        await asyncio.to_thread(wait_until, lambda: app.state.worker.is_alive)
        assert await get(app, "/health/ready") == (200, {"status": "ready"})
    async with worker(settings(tf_serving_grpc_port=free_port())) as app:
        await asyncio.to_thread(wait_until, lambda: app.state.worker.is_alive)
        status, body = await get(app, "/health/ready")
        assert (status, body["status"]) == (503, "not ready")
        assert body["reason"].startswith("TensorFlow Serving: ")
        assert (await get(app, "/health"))[0] == 200
    with structlog.testing.capture_logs():
        async with worker(settings(redis_port=free_port(), shutdown_grace_s=1)) as app:
            not_ready = {"status": "not ready", "reason": "Redis has no heartbeat of this worker"}
            assert await get(app, "/health/ready") == (503, not_ready)
            assert await get(app, "/health/live") == (200, {"status": "alive"})


async def test_a_crashed_task_ends_the_worker(redis, redis_server, model, tmp_path):
    await redis.set(b"job:\xff:data", "[[1, 1, 1, 1]]", ex=60)
    await redis.lpush("queue:predict", b"\xff")
    env = {
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(redis_server.port),
        "TF_SERVING_HOST": "127.0.0.1",
        "TF_SERVING_GRPC_PORT": str(model.port),
        "PORT": str(free_port()),
    }
    with running("src.worker.main", cwd=PATTERN, env=env, log=tmp_path / "log") as process:
        assert await asyncio.to_thread(process.popen.wait, 60) == 1

    assert "worker_crashed" in process.log
    assert await redis.llen("queue:predict:workers") == 1
    await redis.flushall()
