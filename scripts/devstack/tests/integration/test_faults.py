"""Faults in a real stack: what they do to a process, and which jobs a kill spares."""

import asyncio
from pathlib import Path

import pytest
from redis.asyncio import Redis

from scripts.devstack import faults
from scripts.devstack.faults import FaultNotInjected, hanging, kill, kill_and_wait, restart, try_kill
from scripts.devstack.stack import private_stack
from scripts.devstack.table import Pattern, by_number, redis_process
from scripts.devstack.tests.dummies import dummy

TABLE = by_number(
    [
        Pattern(
            number="70",
            title="",
            folder=".",
            processes=(redis_process("PORT_70_REDIS", 1), dummy("worker", "says-when-it-stops", "70")),
        )
    ]
)


@pytest.fixture
async def stack(tmp_path):
    async with private_stack(["70"], tmp_path, table=TABLE) as started:
        yield started


def state_of(managed):
    """R, S: it runs; T: it is stopped."""
    return Path(f"/proc/{managed.pid}/stat").read_text().rpartition(")")[2].split()[0]


async def test_a_job_that_two_deaths_have_met_is_spared(stack, monkeypatch):
    worker = stack.process("70-worker")
    pid = worker.pid
    async with Redis(port=stack.ports["PORT_70_REDIS"], decode_responses=True) as redis:
        await redis.hset("queue:any:meta:abcdef", "deaths", 2)
        for name in ("queue:any:processing:host-1-abc", "queue:any:suspects"):
            await redis.lpush(name, "ffffff", "abcdef")
            assert await try_kill(stack, worker) is None
            assert (worker.pid, state_of(worker) != "T") == (pid, True)

            killing = asyncio.create_task(kill(stack, worker))
            async with asyncio.timeout(30):
                # It cannot claim the job between the question and the signal.
                while state_of(worker) != "T":  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await redis.delete(name)
            assert (await killing).handle.pid == pid
            await faults.started_again(worker, await killing)
            pid = worker.pid

        await redis.lpush("queue:any:suspects", "abcdef")
        monkeypatch.setattr(faults, "LIMIT_S", 0.1)
        with pytest.raises(FaultNotInjected, match=r"70 worker was not killed: .* has met two deaths"):
            await kill(stack, worker)
    async with hanging(stack.process("70-redis")):
        with pytest.raises(FaultNotInjected, match="or Redis could not be asked"):
            await kill(stack, worker)
    await kill_and_wait(stack, stack.process("70-redis"))  # with which no job dies
    assert (worker.pid, state_of(worker) != "T") == (pid, True)


async def test_a_process_is_restarted_hangs_and_is_left_alone_while_it_does_not_run(stack):
    worker = stack.process("70-worker")
    before = worker.pid
    await restart(worker)
    assert worker.pid != before
    assert worker.tail[0] == f"pid {before}"
    assert "stopped" in worker.tail  # it had SIGTERM
    async with hanging(worker):
        assert not await worker.is_ready()
    assert await worker.is_ready()

    killed = await kill(stack, worker)
    await killed.handle.wait()
    while worker.running is not None:  # noqa: ASYNC110
        await asyncio.sleep(0)
    with pytest.raises(FaultNotInjected, match="70 worker is not running"):
        await restart(worker)
