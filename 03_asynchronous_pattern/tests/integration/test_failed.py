"""The command that looks after the jobs that failed for good."""

import os
import subprocess
import sys

import pytest

from serving_common.queue import JobKeys, Worker
from serving_common.testing import free_port
from tests.conftest import PATTERN


@pytest.fixture
def failed(redis_server):
    def run(*words: str, port: int | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "src.worker.failed", *words],
            cwd=PATTERN,
            env=os.environ | {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(port or redis_server.port)},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


async def test_list_show_replay_purge(redis, queue, failed):
    worker = Worker(redis, JobKeys("queue:predict"))
    first, second = [await queue.enqueue(b"[[1,1,1,1]]") for _ in range(2)]
    for job in await worker.claim(2):
        await worker.fail(job.id, "bad row")
    await worker.leave()

    assert failed("list").stdout.splitlines() == [
        f'{{"job_id":"{job_id}","status":"failed","error":"bad row","data":"[[1,1,1,1]]"}}'
        for job_id in (second, first)
    ]
    assert failed("show", first).stdout.count("\n") == 1
    assert failed("replay", first).stdout == f"{first}: replayed\n"
    assert (await queue.get(first)).status == "pending"
    assert failed("purge", "--all").stdout == f"{second}: purged\n"
    assert failed("list").stdout == ""
    assert failed("replay", second).returncode == 1
    assert failed("show", second).returncode == 1


def test_mistakes_are_one_line(failed):
    assert failed("purge").returncode == 2
    done = failed("list", port=free_port())
    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "error: Service temporarily unavailable")
