"""The faults of `make prove PROVE=alerts`, and which alerts each of them must fire; every other alert is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import httpx
from redis.asyncio import Redis

from deploy.observability.testbed import Testbed
from scripts.chaos.faults import garbage
from scripts.devstack.faults import hanging, kill_and_wait, kill_model_process
from scripts.devstack.load import PatternLoad
from scripts.devstack.patterns import WORKS
from serving_common.queue.client import JobQueue
from serving_common.queue.types import JobKeys

HANG_S = 2.0
SLOW_S = 0.15  # slower than 06's objective, faster than its proxy's deadline
SLOW_ANSWERS = 15  # more than the five that nobody is woken for, less than the 30 of a fast burn
POISONED = 3
FLOOD_RATE = 40.0
ALL = "all"
STRANGER = "127.0.0.2"  # another client than the rest of the load
POLL_S = 0.05


Injection = Callable[[Testbed], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, kw_only=True)
class FaultCase:
    """A fault, and what it fires."""

    pattern: str
    fault: str
    process: str
    inject: Injection
    """A context manager: the fault lasts as long as its body, unless it is over before."""
    alerts: frozenset[str]
    """That must fire, as "ProcessDown 03": alert and pattern."""
    may: frozenset[str] = frozenset()
    """That may: an outage of a second fails about as many requests as the rules tolerate, and requests that wait for a
    store are slow before they fail."""
    is_brief: bool = False
    """Whether it is over when it has been injected, or ends once its alerts have fired."""
    needs_history: bool = False
    """Whether it fires only beside a longer time without faults."""

    @property
    def title(self) -> str:
        """As "03 hang worker"."""
        return f"{self.pattern} {self.fault} {self.process}"


@asynccontextmanager
async def stopped(id_: str, bed: Testbed) -> AsyncIterator[None]:
    """SIGTERM, and nobody starts it again."""
    managed = bed.stack.process(id_)
    await bed.stack.stop(managed)
    try:
        yield
    finally:
        await bed.stack.start(id_.partition("-")[0], managed.definition)


@asynccontextmanager
async def store_stopped(id_: str, bed: Testbed) -> AsyncIterator[None]:
    """The same for a database or Redis, while nothing waits in it: what waits until it is back would be old by then."""
    number = id_.partition("-")[0]
    load = bed.loads[number]
    rate = load.tally.rate
    try:
        load.send(0)
        await bed.wait_idle(number)
        async with stopped(id_, bed):
            load.send(rate)
            yield
    finally:
        load.send(rate)


@asynccontextmanager
async def job_stopped(bed: Testbed) -> AsyncIterator[None]:
    """04's job does not run; afterwards one run works without the wait of the others."""
    job = bed.stack.process("04-job").definition
    async with stopped("04-job", bed):
        yield
        now = replace(job, name="job_now", env={**job.env, "JOB_WAIT_SECONDS": "0"}, restart=False)
        await bed.stack.wait(managed := await bed.stack.start("04", now))
        bed.stack.processes.remove(managed)


@asynccontextmanager
async def killed(id_: str, bed: Testbed, times: int = 1) -> AsyncIterator[None]:
    for _ in range(times):
        victim = bed.stack.process(id_)
        while victim.running is None:  # noqa: ASYNC110 - 04's job, between two runs
            await asyncio.sleep(POLL_S)
        await kill_and_wait(bed.stack, victim)
        await bed.wait_well()  # or Prometheus would not have met what the next one kills
    yield


@asynccontextmanager
async def model_processes_killed(bed: Testbed, times: int = 1) -> AsyncIterator[None]:
    for _ in range(times):
        await kill_model_process(bed.stack, bed.stack.process("07-worker"))
    yield


@asynccontextmanager
async def hung(id_: str, bed: Testbed) -> AsyncIterator[None]:
    async with hanging(bed.stack.process(id_)):
        yield


@asynccontextmanager
async def hung_shortly(id_: str, bed: Testbed) -> AsyncIterator[None]:
    async with hanging(bed.stack.process(id_)):
        await asyncio.sleep(HANG_S)
    yield


@asynccontextmanager
async def relayed(bed: Testbed, lies: bool = False, delay_s: float = 0) -> AsyncIterator[None]:
    """The relay in front of a service changes its answers, or holds them back."""
    bed.relay.lies, bed.relay.delay_s = lies, delay_s
    try:
        yield
    finally:
        bed.relay.lies, bed.relay.delay_s = False, 0


slow = partial(relayed, delay_s=SLOW_S)


@asynccontextmanager
async def slow_shortly(bed: Testbed) -> AsyncIterator[None]:
    tally = bed.loads["06"].tally
    async with slow(bed):
        enough = tally.accepted + SLOW_ANSWERS
        while tally.accepted < enough:  # noqa: ASYNC110 - the load has no event for it
            await asyncio.sleep(POLL_S)
    yield


@asynccontextmanager
async def full_redis(number: str, bed: Testbed) -> AsyncIterator[None]:
    """It answers, and takes nothing more."""
    async with Redis(port=bed.stack.ports[f"PORT_{number}_REDIS"]) as redis:
        await redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            await redis.config_set("maxmemory", 0)


@asynccontextmanager
async def poisoned(bed: Testbed) -> AsyncIterator[None]:
    """Jobs that no model can answer."""
    async with Redis(port=bed.stack.ports["PORT_03_REDIS"]) as redis:
        for _ in range(POISONED):
            await JobQueue(redis, JobKeys("queue:predict")).enqueue(b"garbage")
    yield


@asynccontextmanager
async def flooded(bed: Testbed) -> AsyncIterator[None]:
    """A second client sends more than its RATE_LIMIT."""
    transport = httpx.AsyncHTTPTransport(local_address=STRANGER)
    url = bed.stack.urls["PORT_03_PROXY"]
    async with httpx.AsyncClient(base_url=url, transport=transport, timeout=30, trust_env=False) as client:
        flood = PatternLoad(replace(WORKS["03"], job="", stored=""), client, bed.stack.run_dir)
        flood.send(FLOOD_RATE)
        try:
            yield
        finally:
            await flood.close()


@asynccontextmanager
async def garbage_sent(bed: Testbed) -> AsyncIterator[None]:
    """Random bytes to every port that speaks HTTP or gRPC."""
    for managed in bed.stack.processes:
        for name in managed.definition.ports if managed.definition.metrics else ():
            await garbage(bed.stack.ports[name], connections=20)
    yield


def _lasting(
    pattern: str, fault: str, process: str, inject: Injection, *alerts: str, may: Sequence[str] = (), **options: bool
) -> FaultCase:
    """Alerts without a pattern are of the case's own."""

    def full(names: Sequence[str]) -> frozenset[str]:
        return frozenset(name if " " in name else f"{name} {pattern}" for name in names)

    return FaultCase(
        pattern=pattern, fault=fault, process=process, inject=inject, alerts=full(alerts), may=full(may), **options
    )


_brief = partial(_lasting, is_brief=True)


AVAILABILITY = ("AvailabilityBurnsFast", "AvailabilityBurnsSlowly")
LATENCY = ("LatencyBurnsFast", "LatencyBurnsSlowly")
BURNS_SLOWLY = ("AvailabilityBurnsSlowly", "LatencyBurnsSlowly")
JOB_AGE = ("JobAgeBurnsFast", "JobAgeBurnsSlowly")
CASES = (
    # Beside the quiet time: a short stretch of bad moments in a long one of good moments.
    _brief(
        *("03", "hang", "worker", partial(hung, "03-worker"), "ProcessDown", "JobAgeBurnsSlowly"), needs_history=True
    ),
    _brief("04", "stop, shortly", "job", job_stopped, "FreshnessBurnsSlowly", needs_history=True),
    # What the supervisor, as `restart: always`, repairs.
    _brief("02", "kill -9", "model_server", partial(killed, "02-model_server")),
    _brief("02", "hang, 2 s", "model_server", partial(hung_shortly, "02-model_server")),
    _brief("03", "kill -9", "worker", partial(killed, "03-worker")),
    _brief("03", "kill -9", "redis", partial(killed, "03-redis"), may=BURNS_SLOWLY),
    _brief("04", "kill -9", "job", partial(killed, "04-job")),
    _brief("04", "kill -9", "database", partial(killed, "04-database"), may=BURNS_SLOWLY),
    _brief("06", "kill -9", "service_setosa", partial(killed, "06-service_setosa")),
    _brief(
        *("06", "kill -9, 3 times", "service_setosa", partial(killed, "06-service_setosa", times=3), "ProcessRestarts"),
        may=["LatencyBurnsSlowly"],
    ),
    _brief("06", "hang, 2 s", "service_setosa", partial(hung_shortly, "06-service_setosa"), "LatencyBurnsSlowly"),
    _brief("06", "slow, 2 s", "service_virginica", slow_shortly, "LatencyBurnsSlowly"),
    _brief("07", "kill -9", "model process", model_processes_killed),
    _brief("07", "kill -9, 4 times", "model process", partial(model_processes_killed, times=4), "ModelProcessesDie"),
    _brief("07", "kill -9", "worker", partial(killed, "07-worker")),
    _brief("07", "kill -9", "redis", partial(killed, "07-redis")),
    _brief(ALL, "garbage", "every port", garbage_sent),
    _brief("03", "garbage", "queue", poisoned, "DeadLetters"),
    # What lasts.
    _lasting(
        *("02", "stop", "model_server", partial(stopped, "02-model_server")),
        *("ProcessDown", "JobAgeBurnsFast 03", "JobAgeBurnsSlowly 03"),
    ),
    _lasting(
        *("03", "stop", "redis", partial(store_stopped, "03-redis"), "QueueUnobservable", *AVAILABILITY), may=LATENCY
    ),
    _lasting("03", "stop", "worker", partial(stopped, "03-worker"), "ProcessDown", *JOB_AGE),
    _lasting("03", "flood", "proxy", flooded, "RequestsRejected"),
    _lasting("04", "stop", "database", partial(store_stopped, "04-database"), "BacklogUnobservable", *AVAILABILITY),
    _lasting("04", "stop", "job", job_stopped, "FreshnessBurnsFast", "FreshnessBurnsSlowly"),
    _lasting("06", "stop", "service_virginica", partial(stopped, "06-service_virginica"), "ProcessDown"),
    _lasting("06", "lie", "service_virginica", partial(relayed, lies=True), "ServiceFails"),
    _lasting("06", "slow", "service_virginica", slow, *LATENCY),
    _lasting("07", "stop", "redis", partial(store_stopped, "07-redis"), "QueueUnobservable"),
    _lasting("07", "fill", "redis", partial(full_redis, "07"), "JobsNotRegistered"),
    _lasting("07", "stop", "worker", partial(stopped, "07-worker"), "ProcessDown", *JOB_AGE),
)
