"""Faults for the processes of a running stack, one function each: kill -9, restart, hang.

    await kill_and_wait(stack, stack.process("03-worker"))   # back, and ready
    await restart(stack.process("03-redis"))                 # SIGTERM; back, and ready
    async with hanging(stack.process("06-service_setosa")):  # accepts connections, answers nothing
        await asyncio.sleep(2)

A job that is in flight at three deaths fails as poison, which is by design. A killer that meets the same innocent job
three times would make it fail, so `kill` spares a job that two deaths have met, and waits until it has ended.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from scripts.devstack.stack import DevStack, ManagedProcess, RunningProcess

POLL_S = 0.02
SETTLE_S = 0.1  # what a stopped process has asked Redis for takes effect
LIMIT_S = 60  # for such a job to end


class FaultNotInjected(Exception):
    """Nothing was done; the text says why."""


async def kill(stack: DevStack, victim: ManagedProcess) -> RunningProcess:
    """SIGKILL to it and its children; the stack starts it again. What was killed.

    Raises FaultNotInjected if it does not run, or if a job that it must spare does not end.
    """
    with _within_limit(victim.label):
        async with asyncio.timeout(LIMIT_S):
            while True:
                if killed := await try_kill(stack, victim):
                    return killed
                await asyncio.sleep(POLL_S)


async def try_kill(stack: DevStack, victim: ManagedProcess) -> RunningProcess | None:
    """The same, but None at once, with the victim alive, if a job must be spared."""
    running = _running(victim)
    return running if await _kill_unless_third_death(stack, victim, running.signal_group) else None


async def kill_and_wait(stack: DevStack, victim: ManagedProcess) -> None:
    """SIGKILL; return when it has been started again and is ready."""
    await started_again(victim, await kill(stack, victim))


async def started_again(victim: ManagedProcess, ended: RunningProcess) -> None:
    """Return when a process that was ended has been started again and is ready."""
    while victim.running in (None, ended) or not await victim.is_ready():  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)


async def restart(victim: ManagedProcess) -> None:
    """SIGTERM; return when it has been started again and is ready. Raises FaultNotInjected if it does not run."""
    running = _running(victim)
    running.signal_group(signal.SIGTERM)
    await started_again(victim, running)


@asynccontextmanager
async def hanging(victim: ManagedProcess) -> AsyncIterator[None]:
    """SIGSTOP: its ports accept connections, and nothing answers. Raises FaultNotInjected if it does not run."""
    running = _running(victim)
    running.signal_group(signal.SIGSTOP)
    try:
        yield
    finally:
        running.signal_group(signal.SIGCONT)


async def kill_model_process(stack: DevStack, worker: ManagedProcess, stopped_for_s: float = 1) -> int:
    """SIGKILL to a model process of 07's worker, which replaces it. Its process id. Raises FaultNotInjected as `kill`.

    It is stopped before, because an image is in flight for milliseconds only: a stopped process is given one that it
    does not finish.
    """
    with _within_limit(f"the model process of {worker.label}"):
        async with asyncio.timeout(LIMIT_S):
            while True:
                for model in children(_running(worker).handle.pid)[:1]:
                    if await _kill_unless_third_death(stack, worker, partial(_signal, model), stopped_for_s):
                        return model
                await asyncio.sleep(POLL_S)


def children(pid: int) -> list[int]:
    """Child processes that lead sessions of their own (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may contain anything: state, parent, process group, session.
            _, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(parent) == pid and session == stat.parent.name:
                found.append(int(session))
    return found


def _running(victim: ManagedProcess) -> RunningProcess:
    if victim.running is None:
        raise FaultNotInjected(f"{victim.label} is not running")
    return victim.running


def _signal(pid: int, signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)


@contextlib.contextmanager
def _within_limit(label: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        why = "a job in flight has met two deaths, or Redis could not be asked: a third death would make the job fail"
        raise FaultNotInjected(f"{label} was not killed: for {LIMIT_S} s, {why}") from None


async def _kill_unless_third_death(
    stack: DevStack, victim: ManagedProcess, send: Callable[[int], object], stopped_for_s: float = SETTLE_S
) -> bool:
    """SIGKILL by `send`, unless it could be the third death of a job; whether it was sent.

    Asked while the victim is stopped: a running one could claim such a job between the answer and the signal.
    """
    redis = [each for each in stack.processes if each.definition.name == "redis"]
    if not redis or victim in redis:  # no job dies with it
        send(signal.SIGKILL)
        return True
    send(signal.SIGSTOP)
    try:
        await asyncio.sleep(stopped_for_s)
        for each in redis:
            if await _has_job_with_two_deaths(each):
                return False
        send(signal.SIGKILL)
        return True
    finally:
        send(signal.SIGCONT)


async def _has_job_with_two_deaths(redis: ManagedProcess) -> bool:
    """Whether a job that has not ended was in flight at two deaths, in any queue; True if Redis is silent."""
    host, _, port = redis.addresses[0].rpartition(":")
    try:
        async with Redis(host=host, port=int(port), decode_responses=True, socket_timeout=1) as store:
            # In this order, which is a job's own: one that is claimed meanwhile is met in the second list.
            for pattern in ("*:suspects", "*:processing:*"):
                async for name in store.scan_iter(pattern, count=1000, _type="list"):
                    queue = str(name).removesuffix(":suspects").partition(":processing:")[0]
                    for job_id in map(str, await store.lrange(name, 0, -1)):
                        if int(await store.hget(f"{queue}:meta:{job_id}", "deaths") or 0) >= 2:
                            return True
    except RedisError:
        return True
    return False
