"""Workers are killed, TensorFlow Serving and Redis are restarted: every job completes exactly once."""

import os
import signal
import threading
import time
from collections import Counter

import httpx
import pytest
from redis import Redis

from serving_testing.processes import wait_until
from tests.conftest import SAMPLE

JOBS = int(os.environ.get("CHAOS_JOBS", "400"))
KILLS = int(os.environ.get("CHAOS_KILLS", "6"))
TF_SERVING_AWAY_S = float(os.environ.get("CHAOS_TF_SERVING_AWAY_S", "1"))
KILL_EVERY_S = 0.5
STALL_S = 0.3
WORKERS = 4


class FaultInjector(threading.Thread):
    """Kills workers with jobs in flight and starts others; also restarts TensorFlow Serving and Redis."""

    def __init__(self, system) -> None:
        super().__init__()
        self._system = system
        self.killed = 0

    def run(self) -> None:
        model_restart = threading.Thread(target=self._restart_model)
        while self.killed < KILLS:
            time.sleep(KILL_EVERY_S - STALL_S)
            if not self._kill_one_with_jobs_in_flight():
                continue
            self.killed += 1
            self._system.start_worker()
            if self.killed == 1:
                self._system.model.process.popen.kill()  # here, so that no job has met two deaths yet
                model_restart.start()
            if self.killed == KILLS // 2 + 1:
                self._system.redis.kill()
                self._system.redis.start()
        model_restart.join()

    def _kill_one_with_jobs_in_flight(self) -> bool:
        # Jobs are in flight for milliseconds only, unless the model server stalls.
        model = self._system.model.process.popen
        model.send_signal(signal.SIGSTOP)
        try:
            stalled_until = time.monotonic() + STALL_S
            while time.monotonic() < stalled_until:
                if any(self._kill_unless_third_death(worker) for worker in list(self._system.workers)):
                    return True
            return False
        finally:
            model.send_signal(signal.SIGCONT)

    def _kill_unless_third_death(self, worker) -> bool:
        # Stopped first: a running one could claim a job of two deaths between the answer and the signal.
        worker.popen.send_signal(signal.SIGSTOP)
        try:
            # A job in flight at three deaths fails as poison, but here no job is to blame for any of them.
            if max(self._deaths_of_jobs_in_flight(worker.popen.pid), default=2) >= 2:
                return False
            worker.popen.kill()
            self._system.workers.remove(worker)
            return True
        finally:
            worker.popen.send_signal(signal.SIGCONT)

    def _deaths_of_jobs_in_flight(self, pid: int) -> list[int]:
        with Redis(port=self._system.redis.port, decode_responses=True) as redis:
            redis.ping()  # by the next answer, Redis has carried out what the worker sent before it was stopped
            names = redis.lrange("queue:predict:workers", 0, -1)
            mine = [name for name in names if int(name.split("-")[-2]) == pid]
            ids = [job_id for name in mine for job_id in redis.lrange(f"queue:predict:processing:{name}", 0, -1)]
            return [int(redis.hget(f"queue:predict:meta:{job_id}", "deaths") or 0) for job_id in ids]

    def _restart_model(self) -> None:
        self._system.model.process.popen.wait()
        time.sleep(TF_SERVING_AWAY_S)
        self._system.model.start()


def submit(client: httpx.Client) -> str:
    """Submit a job, retrying after 503 and 429."""
    while (response := client.post("/predict", json=SAMPLE)).status_code in (429, 503):
        time.sleep(0.05)
    assert response.status_code == 200, response.text
    job_id: str = response.json()["job_id"]
    return job_id


def state(client: httpx.Client, job_id: str) -> str:
    while (response := client.get(f"/job/{job_id}", params={"wait": 5})).status_code == 503:
        time.sleep(0.05)
    assert response.status_code == 200, response.text
    status: str = response.json()["status"]
    return f"failed: {response.json()['error']}" if status == "failed" else status


@pytest.fixture
def local(system):
    if system.redis is None:
        pytest.skip("the system's processes were not started by this test")
    return system


def test_no_job_is_lost_or_stuck_when_processes_die(local, capsys):
    while len(local.workers) < WORKERS:
        local.start_worker()
    faults = FaultInjector(local)
    # httpx keeps idle connections for 5 s, as long as uvicorn: on a busy machine it would reuse one being closed.
    limits = httpx.Limits(keepalive_expiry=2)
    with httpx.Client(base_url=local.proxy, timeout=60, trust_env=False, limits=limits) as client:
        faults.start()
        ids: list[str] = []
        while faults.is_alive() or len(ids) < JOBS:
            ids.append(submit(client))
            time.sleep(KILL_EVERY_S * KILLS / JOBS)
        faults.join()
        deadline = time.monotonic() + 60
        unfinished, ended = set(ids), Counter[str]()
        while unfinished and time.monotonic() < deadline:
            for job_id in list(unfinished):
                status = state(client, job_id)
                if status not in ("pending", "processing"):
                    ended[status] += 1
                    unfinished.discard(job_id)

    with capsys.disabled():
        print(f"\n{len(ids)} jobs, {faults.killed} workers killed: {dict(ended)}, {len(unfinished)} unfinished")
    assert len(set(ids)) == len(ids)
    assert ended == {"completed": len(ids)}
    with Redis(port=local.redis.port) as redis:
        wait_until(lambda: not redis.llen("queue:predict") and not list(redis.scan_iter("queue:predict:processing:*")))


def test_sigterm_under_load_uses_up_no_try(local):
    with (
        httpx.Client(base_url=local.proxy, timeout=60, trust_env=False) as client,
        Redis(port=local.redis.port) as redis,
    ):
        ids = [submit(client) for _ in range(100)]
        stopped = local.workers.pop(0)
        stopped.popen.send_signal(signal.SIGTERM)
        local.start_worker()
        ids += [submit(client) for _ in range(100)]

        assert Counter(state(client, job_id) for job_id in ids) == {"completed": 200}
        assert stopped.popen.wait(20) == 0
        assert not redis.exists(*(f"queue:predict:meta:{job_id}" for job_id in ids))
