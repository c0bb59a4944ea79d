"""Model processes, workers and Redis are killed under load: every image gets its own result, once."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from redis.asyncio import Redis

from serving_common.redis import QueueUnavailable
from serving_testing.fixtures import running_redis
from serving_testing.processes import Process, answers, free_port, running, wait_until
from src.configurations import WorkerSettings
from src.jobs import Jobs, to_stored
from tests.conftest import PATTERN
from tests.integration.worker.conftest import children, environment, is_running, kill
from tests.integration.worker.model import HANGS, image_of, images
from tests.integration.worker.test_worker import is_same, predict_directly

IMAGES = int(os.environ.get("FAULT_IMAGES", "200"))
KILLS = int(os.environ.get("FAULT_KILLS", "6"))
KILL_EVERY_S = float(os.environ.get("FAULT_KILL_EVERY_S", "1"))
WORKERS = 2

# A stored result in the append-only file, to which Redis writes the effects of its scripts.
RESULT_STORED = re.compile(rb"SET\r\n\$13\r\nresult:([0-9a-f]{6})\r\n")


class UnreliableSystem:
    """Redis and two workers with two model processes each; kills and restarts them."""

    def __init__(self, stack: ExitStack, redis_folder: Path, logs: Path, model: Path) -> None:
        self.redis = stack.enter_context(running_redis(redis_folder))
        self.redis_folder = redis_folder
        self.log = logs / "workers.log"
        self._stack = stack
        self._env = environment(self.redis.port, model)
        self.workers = [self.start_worker() for _ in range(WORKERS)]

    def start_worker(self) -> Process:
        """Returns before the worker is healthy."""
        env = {**self._env, "PORT": str(free_port())}
        return self._stack.enter_context(running("src.worker.main", cwd=PATTERN, env=env, log=self.log))

    async def keep_killing(self, redis: Redis) -> Counter[str]:
        """Kill two model processes, then a worker, and so on; half-way also Redis. Returns the number of kills."""
        killed = Counter[str]()
        for number in range(KILLS):
            await asyncio.sleep(KILL_EVERY_S)
            if number % 3 == 2:
                await self._kill_one_of(redis, lambda: [self.workers[0].popen.pid])
                self.workers = [*self.workers[1:], self.start_worker()]
                killed["worker"] += 1
            else:
                await self._kill_one_of(redis, self._model_processes)
                killed["process"] += 1
            if number == KILLS // 2:
                self.redis.kill()
                await asyncio.to_thread(self.redis.start)
                killed["redis"] += 1
        return killed

    def _model_processes(self) -> list[int]:
        return [pid for worker in self.workers for pid in children(worker.popen.pid)]

    async def _kill_one_of(self, redis: Redis, pids: Callable[[], list[int]]) -> None:
        # A job in flight at three deaths fails as poison, but here no job is to blame for any of them.
        while True:
            for pid in pids():
                # A job takes milliseconds; while stopped, the process will be given one.
                kill(pid, signal.SIGSTOP)
                await asyncio.sleep(0.2)
                # Asked while it is stopped: it could be given such a job between the answer and the signal.
                if not await has_job_with_two_deaths(redis):
                    kill(pid, signal.SIGKILL)
                    return
                kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.1)

    def times_stored(self) -> Counter[str]:
        """How often each job's result was stored, since Redis was empty."""
        files = [path for path in self.redis_folder.rglob("*.aof") if path.is_file()]
        return Counter(job_id.decode() for file in files for job_id in RESULT_STORED.findall(file.read_bytes()))


async def has_job_with_two_deaths(redis: Redis) -> bool:
    async for key in redis.scan_iter("queue:jobs:meta:*"):
        status = key.decode().replace("queue:jobs:meta", "status")
        if await redis.hget(key, "deaths") == b"2" and await redis.get(status) in (b"pending", b"processing"):
            return True
    return False


async def retry_until_available(call, *arguments):
    while True:
        try:
            return await call(*arguments)
        except QueueUnavailable:
            await asyncio.sleep(0.05)


async def test_every_image_gets_its_result_once_under_kills(tmp_path, model_path, classifier, capsys):
    many = images(IMAGES)
    (tmp_path / "redis").mkdir()
    with ExitStack() as stack:
        system = UnreliableSystem(stack, tmp_path / "redis", tmp_path, model_path)
        wait_until(lambda: system.log.read_text().count("service_started") == WORKERS)
        async with Redis(port=system.redis.port) as redis:
            jobs = Jobs(redis, "queue:jobs")
            killing = asyncio.create_task(system.keep_killing(redis))
            ids = []
            for image in many:
                ids.append(await retry_until_available(jobs.enqueue, image))
                await asyncio.sleep(KILLS * KILL_EVERY_S / IMAGES)
            killed = await killing

            ended = Counter[str]()
            deadline = time.monotonic() + 180  # workers start slowly on a busy machine
            settings = WorkerSettings()
            for job_id, image in zip(ids, many, strict=True):
                state = await retry_until_available(jobs.get, job_id)
                while not state.status.is_final and time.monotonic() < deadline:
                    state = await retry_until_available(jobs.get, job_id, 1)
                ended[state.status] += 1
                prediction = predict_directly(classifier, image, settings)
                assert state.result == prediction.label.encode(), state
                details = await jobs.details(job_id)
                assert is_same(details["async"], prediction), (details, to_stored(prediction))
            quarantined = [key async for key in redis.scan_iter("queue:jobs:meta:*")]
        stored = system.times_stored()
        deaths_with_jobs = system.log.read_text().count("model_process_died")
        assert system.redis.keys_without_ttl() == []

    with capsys.disabled():
        print(f"\n{len(ids)} images: {dict(ended)}; killed: {dict(killed)}", end="")
        print(f" ({deaths_with_jobs} processes with an image in flight; {len(quarantined)} images were run alone)")
    assert ended == {"completed": IMAGES}
    assert killed.keys() == {"process", "worker", "redis"}
    assert deaths_with_jobs, "no process was killed with a job in flight: this has tested nothing"
    # An enqueue that Redis did not live to confirm was repeated, so that image may have two jobs. Every job, also one
    # whose id was never returned, was stored exactly once.
    assert [stored[job_id] for job_id in ids] == [1] * IMAGES
    assert set(stored.values()) == {1}


async def test_sigterm_requeues_jobs_without_using_a_retry(redis, jobs, start_worker):
    ids = [await jobs.enqueue(image) for image in images(150)]
    with start_worker(BATCH_SIZE="2") as stopped:
        processes = children(stopped.popen.pid)
        assert len(processes) == 2
        await jobs.get(ids[10], 20)
        assert stopped.stop() == 0
        assert not any(is_running(pid) for pid in processes)
    statuses = [await redis.get(f"status:{job_id}") for job_id in ids]
    assert set(statuses) <= {b"completed", b"pending"}
    assert [job_id.decode() for job_id in (await redis.lrange("queue:jobs", 0, -1))[::-1]] == [
        job_id for job_id, status in zip(ids, statuses, strict=True) if status == b"pending"
    ]
    with start_worker(NUM_WORKERS="1"):
        assert {(await jobs.get(job_id, 30)).status for job_id in ids} == {"completed"}
    assert not [key async for key in redis.scan_iter("queue:jobs:meta:*")]


async def test_sigterm_requeues_job_that_exceeds_grace_period(redis, jobs, start_worker):
    endless = await jobs.enqueue(image_of(HANGS))
    with start_worker(SHUTDOWN_GRACE_S="1", NUM_WORKERS="1") as stopped:
        wait_until(lambda: f"Processing job: {endless}" in stopped.log)
        assert stopped.stop() == 0
    assert await redis.lrange("queue:jobs", 0, -1) == [endless.encode()]
    assert not await redis.exists(f"queue:jobs:meta:{endless}")


def test_sigint_while_models_load_exits_cleanly(tmp_path, redis_server, model_path):
    """The signal goes to the process group, and so to model processes that are starting or loading."""
    log = tmp_path / "log"
    env = environment(redis_server.port, model_path) | {"PORT": str(free_port()), "QUEUE_NAME": "queue:empty"}
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "src.worker.main"],
            cwd=PATTERN,
            env=os.environ | env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: children(worker.pid))
        os.killpg(worker.pid, signal.SIGINT)
        assert worker.wait(30) == 0, log.read_text()
    finally:
        worker.kill()
        worker.wait()
    assert "Traceback" not in log.read_text()
    assert '"service_stopped"' in log.read_text()


def test_process_killed_while_loading_is_replaced(tmp_path, redis_server, model_path):
    port = free_port()
    env = environment(redis_server.port, model_path) | {"PORT": str(port), "NUM_WORKERS": "1"}
    with running("src.worker.main", cwd=PATTERN, env=env, log=tmp_path / "log") as worker:
        wait_until(lambda: children(worker.popen.pid))
        kill(children(worker.popen.pid)[0])
        wait_until(lambda: "model_process_replaced" in worker.log)
        wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"))


async def test_model_processes_exit_when_worker_is_killed(jobs, start_worker):
    ids = [await jobs.enqueue(image) for image in images(60)]
    with start_worker() as killed:
        processes = children(killed.popen.pid)
        kill(processes[0], signal.SIGSTOP)  # so that it has a job in flight and more are waiting
        await asyncio.sleep(0.1)
        killed.popen.kill()
        kill(processes[0], signal.SIGCONT)
        wait_until(lambda: not any(is_running(pid) for pid in processes))
    with start_worker(NUM_WORKERS="1"):
        assert {(await jobs.get(job_id, 30)).status for job_id in ids} == {"completed"}


def test_missing_model_is_one_log_line_and_exit_code_1(tmp_path, redis_server):
    env = environment(redis_server.port, tmp_path / "missing.onnx") | {"PORT": str(free_port()), "NUM_WORKERS": "1"}
    with running("src.worker.main", cwd=PATTERN, env=env, log=tmp_path / "log") as worker:
        assert worker.popen.wait(60) == 1
    [line] = worker.log.splitlines()
    assert "there is no model at" in line


def test_worker_stops_while_redis_is_down(tmp_path, model_path):
    (tmp_path / "redis").mkdir()
    with running_redis(tmp_path / "redis") as redis:
        port = free_port()
        with running(
            "src.worker.main",
            cwd=PATTERN,
            env=environment(redis.port, model_path) | {"PORT": str(port), "NUM_WORKERS": "1"},
            log=tmp_path / "log",
            ready=f"http://127.0.0.1:{port}/health",
        ) as worker:
            redis.kill()
            wait_until(lambda: not answers(f"http://127.0.0.1:{port}/health"))
            assert worker.stop() == 0
            assert "claims_left_behind" in worker.log
