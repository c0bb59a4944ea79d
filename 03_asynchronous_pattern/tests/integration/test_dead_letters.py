"""The command that handles dead letters."""

import asyncio
from dataclasses import dataclass

import pytest

from serving_common.queue.types import JobKeys
from serving_common.queue.worker import Worker
from serving_testing.processes import free_port, running
from src.worker.dead_letters import main
from tests.conftest import PATTERN


@dataclass
class CommandResult:
    returncode: object
    stdout: str
    stderr: str


@pytest.fixture
def dead_letters(redis_server, monkeypatch, capsys):
    monkeypatch.setenv("REDIS_HOST", "127.0.0.1")

    async def run(*words: str, port: int | None = None) -> CommandResult:
        monkeypatch.setenv("REDIS_PORT", str(port or redis_server.port))

        def exit_code() -> object:
            try:
                main(words)
            except SystemExit as exc:
                return exc.code
            return 0

        code = await asyncio.to_thread(exit_code)  # it has an event loop of its own
        return CommandResult(code, *capsys.readouterr())

    return run


async def test_list_show_redrive_discard(redis, queue, dead_letters):
    worker = Worker(redis, JobKeys("queue:predict"))
    first, second = [await queue.enqueue(b"[[1,1,1,1]]") for _ in range(2)]
    for job in await worker.claim(2):
        await worker.fail(job.id, "bad row")
    await worker.deregister()

    assert (await dead_letters("list")).stdout.splitlines() == [
        f'{{"job_id":"{job_id}","status":"failed","error":"bad row","data":"[[1,1,1,1]]"}}'
        for job_id in (second, first)
    ]
    assert (await dead_letters("show", first)).stdout.count("\n") == 1
    assert (await dead_letters("redrive", first)).stdout == f"{first}: redriven\n"
    assert (await queue.get(first)).status == "pending"
    assert (await dead_letters("discard", "--all")).stdout == f"{second}: discarded\n"
    assert (await dead_letters("list")).stdout == ""
    assert (await dead_letters("redrive", second)).returncode == 1
    assert (await dead_letters("show", second)).returncode == 1


@pytest.mark.parametrize(
    ("action", "replacement", "done", "status"),
    [("replay", "redrive", "replayed", b"pending"), ("purge", "discard", "purged", None)],
)
async def test_deprecated_actions_still_work(redis, queue, dead_letters, action, replacement, done, status):
    worker = Worker(redis, JobKeys("queue:predict"))
    job_id = await queue.enqueue(b"[[1,1,1,1]]")
    await worker.claim(1)
    await worker.fail(job_id, "bad row")
    await worker.deregister()

    result = await dead_letters(action, job_id)

    assert (result.returncode, result.stdout) == (0, f"{job_id}: {done}\n")
    assert result.stderr == f"`{action}` is deprecated: use `{replacement}`\n"
    assert await redis.get(f"job:{job_id}:status") == status


def test_the_deprecated_module_still_works(redis_server, tmp_path):
    env = {"REDIS_HOST": "127.0.0.1", "REDIS_PORT": str(redis_server.port)}
    with running("src.worker.failed list", cwd=PATTERN, env=env, log=tmp_path / "log") as process:
        assert process.popen.wait(60) == 0

    assert process.log == "`src.worker.failed` is deprecated: use `src.worker.dead_letters`\n"


async def test_errors_are_one_line(dead_letters):
    assert (await dead_letters("discard")).returncode == 2
    assert (await dead_letters("list", port=free_port())).returncode == "error: Service temporarily unavailable"
