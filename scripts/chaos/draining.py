"""Stops replicas of every HTTP service under load, as a rolling update does: `make prove PROVE=drain`.

A client sends its requests to two replicas in turn, and learns only once a second which are ready. Each stop is a
SIGTERM with DRAIN_DELAY_S; no request may fail.
"""

import argparse
import asyncio
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, cycle, islice
from pathlib import Path
from typing import Any

import httpx

from scripts.chaos.faults import replica_of
from scripts.chaos.harness import POLL_S, ChaosRun, Violation
from scripts.chaos.loss_report import rows
from scripts.devstack.faults import restart
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.patterns.sync_async import photograph_body
from scripts.devstack.runs import Profile, run_each
from scripts.devstack.stack import DevStack, private_stack, run
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import ROOT
from scripts.devstack.terminal import INTERRUPTED, make_console
from serving_testing.redis_server import redis_binary

PROBE_EVERY_S = 1
KNOWN_FOR_S = 2 * PROBE_EVERY_S
DRAIN_DELAY_S = 5  # as in the manifests
CLIENTS = 4
FLOWER = FLOWERS["setosa"]
STOPS = {Profile.QUICK: 2, Profile.SHORT: 4, Profile.LONG: 50}


@dataclass(frozen=True, kw_only=True)
class Service:
    """An HTTP service, and a request that it answers with 200."""

    number: str
    process: str
    path: str = "/predict"
    body: Callable[[], dict[str, Any]]
    """Called when the models have been built."""
    pace_s: float = 0.1
    needs_redis: bool = False


def services() -> list[Service]:
    """All of them; those that need Redis only where there is one."""
    model, instances = "/v1/models/iris", {"instances": [FLOWER]}
    data, values = {"data": [FLOWER]}, {"values": FLOWER}
    all_of_them = [
        Service(number="02", process="model_server", path=f"{model}:predict", body=lambda: instances),
        Service(number="03", process="proxy", body=lambda: data, needs_redis=True),
        Service(number="04", process="api", path="/data", body=lambda: values),
        Service(number="06", process="service_setosa", body=lambda: data),
        Service(number="06", process="proxy", body=lambda: data),
        Service(number="07", process="proxy", body=photograph_body, pace_s=0.5, needs_redis=True),
    ]
    return [service for service in all_of_them if redis_binary() or not service.needs_redis]


class RoundRobin:
    """A client of replicas: each request goes to the next of those that were ready when it last asked."""

    def __init__(self, client: httpx.AsyncClient, urls: Sequence[str]) -> None:
        self._client, self._sent = client, 0
        # When a check began that found it ready.
        self._ready_at = dict.fromkeys(urls, -math.inf)

    def known_ready(self) -> list[str]:
        """The replicas about which the client knows, not from long ago, that they were ready."""
        since = time.monotonic() - KNOWN_FOR_S
        return [url for url, ready_at in self._ready_at.items() if ready_at > since]

    async def next(self) -> str:
        """Base URL for the next request. Where the machine is too busy for the checks, it comes later."""
        while not (known := self.known_ready()):
            await asyncio.sleep(POLL_S)
        self._sent += 1
        return known[self._sent % len(known)]

    async def keep_checking(self) -> None:
        """Check all replicas once in a period."""
        started = time.monotonic()
        for number in count(1):
            await self.check_all()
            await asyncio.sleep(started + number * PROBE_EVERY_S - time.monotonic())

    async def check_all(self) -> None:
        """Check all replicas now."""
        await asyncio.gather(*map(self._check, self._ready_at))

    async def _check(self, url: str) -> None:
        started = time.monotonic()
        try:
            response = await self._client.get(f"{url}/health/ready", timeout=PROBE_EVERY_S)
            self._ready_at[url] = started if response.status_code == 200 else -math.inf
        except httpx.TimeoutException:
            pass
        except httpx.TransportError:
            self._ready_at[url] = -math.inf


async def stop_again_and_again(run: ChaosRun, service: Service, stack: DevStack, stops: int) -> None:
    """Stop two replicas of a service in turn, each time when the other one is known to be ready."""
    run.failure = "anything but 200"
    definition, body = PATTERNS[service.number].process(service.process), service.body()
    replicas = [await stack.start(service.number, replica_of(definition, number)) for number in (1, 2)]
    limits = httpx.Limits(keepalive_expiry=2)
    async with httpx.AsyncClient(timeout=30, trust_env=False, limits=limits) as client, asyncio.TaskGroup() as tasks:
        urls = [at for replica in replicas for at in replica.addresses if at.startswith("http://")]
        balancer = RoundRobin(client, urls)

        async def send(_number: int) -> tuple[str, Violation | None]:
            await asyncio.sleep(service.pace_s)
            run.accepted += 1
            response = await run.request(client, "POST", f"{await balancer.next()}{service.path}", json=body)
            if isinstance(response, Violation) or response.status_code == 200:
                return service.path, response if isinstance(response, Violation) else None
            return service.path, Violation(f"status {response.status_code}: {response.text[:200]}")

        checking = tasks.create_task(balancer.keep_checking())
        async with run.clients(CLIENTS, send):
            for victim in islice(cycle(replicas), stops):
                async with run.incident("SIGTERM", service.process, is_outage=False) as incident:
                    await restart(victim)
                    while len(balancer.known_ready()) < len(replicas):
                        await asyncio.sleep(POLL_S)
                    await run.recovered(since=incident.started)
                if victim.exit_code != 0:
                    run.fail(f"it exited with {victim.exit_code}")
        checking.cancel()


async def drive(runs: Sequence[tuple[Service, ChaosRun]], stops: int) -> None:
    """All services at the same time, on one stack."""
    numbers = sorted({service.number for service, _ in runs})
    # Its worker would compute more than all the rest together, and no request waits for it.
    table = PATTERNS | {"07": PATTERNS["07"].without("worker")}
    settings = {"DRAIN_DELAY_S": str(DRAIN_DELAY_S), "JOB_WAIT_SECONDS": "5"}
    async with (
        private_stack(numbers, ROOT / ".run/drain", table=table, environ=settings) as stack,
        asyncio.TaskGroup() as tasks,
    ):
        for service, chaos in runs:
            tasks.create_task(stop_again_and_again(chaos, service, stack, stops))


def markdown(runs: Sequence[ChaosRun], profile: Profile) -> Iterator[str]:
    """Lines: what was done, and the table."""
    words = "drain" if profile is Profile.SHORT else f'"drain {profile}"'
    seconds = max(run.seconds for run in runs)
    yield f"# Replicas that stop under load\n\n`make prove PROVE={words}` on {described()}; {seconds:.0f} s.\n"
    yield from rows(runs)
    yield f"""
Two replicas of each service get requests in turn from {CLIENTS} clients, which learn only every {PROBE_EVERY_S} s which
are ready, and try nothing again. Each stop is a SIGTERM with `DRAIN_DELAY_S={DRAIN_DELAY_S}`; recovery ends when the
replica has been started again and gets requests. A failed answer is anything but 200."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if no request failed, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "prove-results")
    parser.add_argument("--profile", type=Profile, choices=[*Profile], default=Profile.SHORT, help="how many stops")
    options = parser.parse_args(arguments)
    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    runs = [
        (service, ChaosRun(pattern=replace(PATTERNS[service.number], title=service.process), say=say))
        for service in services()
    ]
    whole = ChaosRun(pattern=replace(PATTERNS["02"], number="all", title="services"), say=say)
    if redis_binary() is None:
        whole.skip("03 and 07: no redis-server found")

    async def program() -> int:
        is_whole = await run_each([whole], console, lambda _: drive(runs, STOPS[options.profile]))
        return 0 if is_whole else INTERRUPTED

    code = run(program())
    reported = [chaos for _, chaos in runs]
    for chaos in reported:
        chaos.seconds = whole.seconds
    text = "\n".join(markdown(reported, options.profile))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "draining.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)
    for chaos in reported:
        for result in chaos.failed[:5]:
            print(f"FAILED: {chaos.title} {result.violation}")
    is_passed = not whole.error and all(chaos.is_passed for chaos in reported)
    return code or (0 if is_passed else 1)


if __name__ == "__main__":
    sys.exit(main())
