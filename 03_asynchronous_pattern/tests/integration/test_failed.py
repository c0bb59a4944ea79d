"""The command that looks after the jobs that failed for good."""

import asyncio
from dataclasses import dataclass

import pytest
from src.worker.failed import main

from serving_common.queue.types import JobKeys
from serving_common.queue.worker import Worker
from serving_testing.processes import free_port


@dataclass
class Done:
    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def failed(redis_server, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")

    async def run(*words: str, port: int | None = None) -> Done:
        monkeypatch.setenv("REDIS_PORT", str(port or redis_server.port))

        def exit_code() -> object:
            try:
                main(words)
            except SystemExit as exc:
                return exc.code
            return 0

        code = await asyncio.to_thread(exit_code)  # it has an event loop of its own
        return Done(code, *capsys.readouterr())

    return run


async def test_list_show_replay_purge(redis, queue, failed):
    worker = Worker(redis, JobKeys("queue:predict"))
    first, second = [await queue.enqueue(b"[[1,1,1,1]]") for _ in range(2)]
    for job in await worker.claim(2):
        await worker.fail(job.id, "bad row")
    await worker.deregister()

    assert (await failed("list")).stdout.splitlines() == [
        f'{{"job_id":"{job_id}","status":"failed","error":"bad row","data":"[[1,1,1,1]]"}}'
        for job_id in (second, first)
    ]
    assert (await failed("show", first)).stdout.count("\n") == 1
    assert (await failed("replay", first)).stdout == f"{first}: replayed\n"
    assert (await queue.get(first)).status == "pending"
    assert (await failed("purge", "--all")).stdout == f"{second}: purged\n"
    assert (await failed("list")).stdout == ""
    assert (await failed("replay", second)).returncode == 1
    assert (await failed("show", second)).returncode == 1


async def test_mistakes_are_one_line(failed):
    assert (await failed("purge")).returncode == 2
    assert (await failed("list", port=free_port())).returncode == "error: Service temporarily unavailable"
