"""Scales local workers of 03 as KEDA would on Kubernetes: `make prove PROVE=keda`.

A burst of jobs, in the middle of it a Redis that cannot be asked, and back to the minimum. autoscaler.py reads the
ScaledObject and decides, from the values of the proxy's own /metrics. Time runs SPEED times as fast, for every period
of the file and of the autoscaler, and for ages.
"""

import argparse
import asyncio
import itertools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import httpx

from scripts.chaos.asynchronous import JobClients
from scripts.chaos.autoscaler import SYNC_S, Autoscaler, scaled_object
from scripts.chaos.faults import Relay, numbered_worker, with_workers
from scripts.chaos.harness import POLL_S, ChaosRun
from scripts.chaos.loss_report import rows
from scripts.devstack.faults import hanging
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import require_redis, run_each
from scripts.devstack.stack import DevStack, ManagedProcess, free_ports, run
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, make_console

SPEED = 10
JOBS = 20_000
MODEL_DELAY_S = 0.4  # with two batches of 32 at once, 160 jobs/s and worker: the machine itself is not the limit
OUTAGE_TICKS = 4
SENDERS = 32


@dataclass(frozen=True, slots=True)
class Tick:
    """What the autoscaler read and decided; `at` in real seconds since the burst began."""

    at: float
    values: list[float | None]
    formula: int | None
    replicas: int
    is_outage: bool


def value_in(page: str, metric: str) -> float | None:
    """A metric's value, as KEDA's metrics-api scaler finds it in a page of Prometheus; None if it is absent."""
    found = re.search(rf"^{metric} (\S+)$", page, re.MULTILINE)
    return float(found[1]) if found else None


class Workers:
    """The worker processes of the stack, as a Deployment keeps them."""

    def __init__(self, stack: DevStack, variables: Mapping[str, str]) -> None:
        self._stack, self._variables = stack, variables
        self._named = itertools.count(1)
        self._running = [asyncio.create_task(_returned(stack.process("03-worker_0")))]
        self._stopping: list[asyncio.Task[int | None]] = []

    @property
    def count(self) -> int:
        """Replicas, those that start included."""
        return len(self._running)

    def scale(self, replicas: int) -> None:
        """Start and stop processes until there are so many, the newest first; what goes gets SIGTERM and its grace."""
        while self.count < replicas:
            definition = numbered_worker(PATTERNS["03"], next(self._named), **self._variables)
            self._running.append(asyncio.create_task(self._stack.start("03", definition)))
        while self.count > replicas:
            self._stopping.append(asyncio.create_task(self._stop(self._running.pop())))

    async def _stop(self, starting: asyncio.Task[ManagedProcess]) -> int | None:
        return await self._stack.stop(await starting)

    async def settle(self) -> list[int | None]:
        """Wait for all that start and stop; the exit codes of the latter."""
        await asyncio.gather(*self._running)
        return await asyncio.gather(*self._stopping)


async def _returned(process: ManagedProcess) -> ManagedProcess:
    return process


@dataclass
class Driver:
    """Asks the proxy and scales the workers, tick by tick."""

    client: httpx.AsyncClient
    workers: Workers
    autoscaler: Autoscaler
    ticks: list[Tick] = field(default_factory=list)
    is_outage: bool = False

    async def run(self, started: float) -> None:
        """Tick until cancelled."""
        for number in itertools.count():
            await asyncio.sleep(started + number * SYNC_S / SPEED - time.monotonic())
            page = (await self.client.get("/metrics")).text
            values = [value_in(page, trigger.metric) for trigger in self.autoscaler.triggers]
            own = [
                value and value * (SPEED if trigger.is_age else 1)
                for trigger, value in zip(self.autoscaler.triggers, values, strict=True)
            ]
            before = self.workers.count
            replicas = self.autoscaler.replicas((time.monotonic() - started) * SPEED, before, own)
            formula = self.autoscaler.formula(before, own)
            self.workers.scale(replicas)
            self.ticks.append(Tick(time.monotonic() - started, own, formula, replicas, self.is_outage))

    async def until(self, is_reached: Callable[[Tick], bool]) -> None:
        """Return after a tick, from now on, of which this is true."""
        seen = len(self.ticks)
        while not any(map(is_reached, self.ticks[seen:])):
            await asyncio.sleep(POLL_S)


async def send_burst(base_url: str, count: int) -> list[str]:
    """Queue so many jobs as fast as the proxy takes them; their ids."""
    body = json.dumps({"data": [FLOWERS["setosa"]]}).encode()
    numbers, ids = iter(range(count)), list[str]()

    async def sender(session: aiohttp.ClientSession) -> None:
        for _ in numbers:
            async with session.post(f"{base_url}/predict", data=body) as response:
                ids.append((await response.json())["job_id"])

    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(headers=headers, raise_for_status=True) as session, asyncio.TaskGroup() as tasks:
        for _ in range(SENDERS):
            tasks.create_task(sender(session))
    return ids


async def drive(chaos: ChaosRun, jobs: int, table: Mapping[str, Pattern] = PATTERNS) -> list[Tick]:
    """A burst of jobs; once all workers are at it, a Redis that cannot be asked; and back to the minimum."""
    chaos.unit, chaos.failure = "jobs", "anything but 200"
    autoscaler = Autoscaler.of(scaled_object()["spec"])
    relayed = free_ports(["02"], table)["PORT_02_GRPC"]
    variables = {"TF_SERVING_GRPC_PORT": str(relayed)}
    pattern = with_workers(table["03"], autoscaler.least, **variables)
    ports = free_ports(["03"], {**table, "03": pattern})
    async with AsyncExitStack() as stacked:
        await stacked.enter_async_context(Relay(relayed, ports["PORT_02_GRPC"], MODEL_DELAY_S))
        stack = await stacked.enter_async_context(chaos.stack(pattern, ports, {"MAX_QUEUE_LENGTH": str(jobs)}))
        proxy = stack.urls["PORT_03_PROXY"]
        client = await stacked.enter_async_context(httpx.AsyncClient(base_url=proxy, timeout=30, trust_env=False))
        workers = Workers(stack, variables)
        driver = Driver(client, workers, autoscaler)
        ticking = asyncio.create_task(driver.run(time.monotonic()))
        clients = JobClients(chaos, client, await send_burst(proxy, jobs))
        chaos.accepted = len(clients.ids)
        await driver.until(lambda tick: tick.replicas == autoscaler.most)
        async with chaos.incident("hang", "redis", is_outage=False) as incident:
            before, seen, driver.is_outage = workers.count, len(driver.ticks), True
            async with hanging(stack.process("03-redis")):
                await driver.until(lambda tick: None in tick.values)
                await asyncio.sleep(OUTAGE_TICKS * SYNC_S / SPEED)
            driver.is_outage = False
            incident.end_fault()
            if found := {tick.replicas for tick in driver.ticks[seen:] if tick.formula is None} - {before}:
                chaos.fail(f"without metrics the workers went from {before} to {found}")
            await driver.until(lambda tick: None not in tick.values)
        await driver.until(lambda tick: tick.replicas == autoscaler.least and tick.values[0] == 0)
        ticking.cancel()
        if codes := {code for code in await workers.settle() if code != 0}:
            chaos.fail(f"workers that were scaled in exited with {codes}")
        await clients.account("job:{}:result")
    return driver.ticks


def markdown(chaos: ChaosRun, ticks: Sequence[Tick]) -> Iterator[str]:
    """Lines: what came of the jobs, and a row for each tick at which something changed."""
    yield "# Workers scaled by KEDA's formula"
    yield f"\n`make prove PROVE=keda` on {described()}; {chaos.seconds:.0f} s. Time of the autoscaler x {SPEED}.\n"
    yield from rows([chaos])
    yield "\n![Replicas, jobs and age of the oldest over time](autoscaling.svg)\n"
    yield "| at | jobs_unfinished | age of the oldest | formula | workers | |"
    yield "| ---: | ---: | ---: | ---: | ---: | --- |"
    for tick in ticks:
        jobs, age = ("absent" if value is None else f"{value:,.0f}" for value in tick.values)
        formula = "-" if tick.formula is None else str(tick.formula)
        yield f"| {tick.at:.1f} s | {jobs} | {age} | {formula} | {tick.replicas} | {'outage' * tick.is_outage} |"


def draw(ticks: Sequence[Tick], path: Path) -> None:
    """The same as a picture."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    drawing, panels = plt.subplots(3, 1, figsize=(9, 6), sharex=True)
    times = [tick.at for tick in ticks]
    gap = float("nan")
    for axes, label, values in (
        (panels[0], "workers", [float(tick.replicas) for tick in ticks]),
        (panels[1], "jobs_unfinished", [gap if tick.values[0] is None else tick.values[0] for tick in ticks]),
        (panels[2], "age of the oldest, s", [gap if tick.values[1] is None else tick.values[1] for tick in ticks]),
    ):
        axes.step(times, values, where="post", color="#0072b2")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        for tick in (tick for tick in ticks if tick.is_outage):
            axes.axvspan(tick.at, tick.at + SYNC_S / SPEED, color="#d55e00", alpha=0.2)
    panels[2].set_xlabel("s; shaded: Redis cannot be asked")
    drawing.savefig(path, metadata={"Date": None}, facecolor="white", bbox_inches="tight")
    plt.close(drawing)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if nothing was lost, done twice or stuck, and the outage changed nothing; 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "prove-results")
    parser.add_argument("--jobs", type=int, default=JOBS)
    options = parser.parse_args(arguments)
    console, ticks = make_console(), list[Tick]()
    chaos = ChaosRun(pattern=PATTERNS["03"], say=lambda line: console.print(line, markup=False, soft_wrap=True))

    async def execute(each: ChaosRun) -> None:
        require_redis()
        ticks.extend(await drive(each, options.jobs))

    async def program() -> int:
        if not await run_each([chaos], console, execute):
            return INTERRUPTED
        return 0 if chaos.skipped or chaos.is_passed else 1

    code = run(program())
    if ticks:
        options.output.mkdir(parents=True, exist_ok=True)
        text = "\n".join(markdown(chaos, ticks))
        (options.output / "autoscaling.md").write_text(f"{text}\n", encoding="utf-8")
        draw(ticks, options.output / "autoscaling.svg")
        print(text)
    for result in chaos.failed[:5]:
        print(f"FAILED: {result.violation}")
    return code


if __name__ == "__main__":
    sys.exit(main())
