"""What traces cost: `python -m scripts.benchmarks.tracing`. Off, 1 % and 100 % take turns.

Each way has several processes, because two that run the same code can differ by a tenth; what they call has traces off.
The collector, beside the load generator on the same machine, takes the exports and discards them. Measured is the CPU
time that a process takes for a request, exports included: its reciprocal is what one core can answer, also while others
use the machine.
"""

import argparse
import asyncio
import itertools
import json
import os
import secrets
import socket
import statistics
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from scripts.benchmarks.asynchronous import BODY, DATA, KEYS, MODEL_WORKER
from scripts.benchmarks.harness import send_load, take_turns
from scripts.benchmarks.horizontal_microservice import SERVICE_NAMES, process, url_of
from scripts.devstack import web
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, ManagedProcess, private_stack
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST, ROOT, Pattern, ProcessDefinition, web_process
from serving_common.queue.client import JobQueue
from serving_common.queue.commands import Commands
from serving_testing.processes import cpu_seconds

SHARES = {"off": None, "1 %": "0.01", "100 %": "1"}
PROCESSES = 3
JOBS = 4000
RUN_DIR = ROOT / ".run/bench-traces"
Rates = Mapping[str, list[float]]
Key = tuple[str, int]
"""A process: its share of sampled requests, and a number."""


def variables(url: str) -> dict[str, dict[str, str]]:
    """The environment of a process by how much of it is sampled."""
    on = {"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio"}
    return {name: {} if share is None else on | {"OTEL_TRACES_SAMPLER_ARG": share} for name, share in SHARES.items()}


async def collector(_: Any, receive: Callable[[], Awaitable[MutableMapping[str, Any]]], send: Any) -> None:
    """OTLP/HTTP: 200 to everything."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/x-protobuf"), (b"content-length", b"0")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


async def requests_per_cpu_s(managed: ManagedProcess, connections: int, seconds: float) -> float:
    """Responses per second of CPU time."""
    before = cpu_seconds(managed.pid)
    load = await send_load(f"{managed.url}/predict", connections, seconds, BODY)
    return len(load.latencies) / (cpu_seconds(managed.pid) - before)


def slug(key: Key) -> str:
    return f"{key[0].removesuffix(' %')}_{key[1]}"


def by_share(rates: Mapping[Key, list[float]]) -> Rates:
    """The rates of all processes of a share, in the same order for each."""
    return {share: [rate for key, each in rates.items() if key[0] == share for rate in each] for share in SHARES}


async def measure_06(url: str, rounds: int, seconds: float) -> dict[str, Rates]:
    """A service, and a proxy before three services."""
    model = f"{{root}}/models/artifacts/{PATTERNS['06'].artifacts[0]}.onnx"
    services = ",".join(f"{label}={url_of(name)}" for label, name in zip(FLOWERS, SERVICE_NAMES, strict=True))
    targets: dict[str, dict[Key, ProcessDefinition]] = {"06 service": {}, "06 proxy": {}}
    for number, (share, env) in itertools.product(range(PROCESSES), variables(url).items()):
        key = share, number
        name = f"service_{slug(key)}"
        service = process(name, "src.services.app", SERVICE_NAME=name, MODEL_FILEPATH=model, **env)
        targets["06 service"][key] = service
        targets["06 proxy"][key] = process(f"proxy_{slug(key)}", "src.proxy.app", SERVICES=services, **env)
    pattern = (
        PATTERNS["06"].without("proxy").with_processes(*(each for some in targets.values() for each in some.values()))
    )
    found: dict[str, Rates] = {}
    async with stack_of(pattern) as stack:
        for (what, definitions), connections in zip(targets.items(), (32, 16), strict=True):
            cases = {
                key: partial(requests_per_cpu_s, stack.process(f"06-{each.name}"), connections, seconds)
                for key, each in definitions.items()
            }
            await take_turns(1, cases)  # warm-up
            found[f"{what}, {connections} connections"] = by_share(await take_turns(rounds, cases))
    return found


async def measure_03(url: str, rounds: int, seconds: float) -> dict[str, Rates]:
    """POST /predict, and a worker with a full queue."""
    env = dict(PATTERNS["03"].process("proxy").env)
    ways = variables(url)
    proxies = {
        key: web_process(
            f"proxy_{slug(key)}",
            "src.proxy.app",
            f"PORT_03_PROXY_{slug(key)}",
            1,
            env=env | ways[key[0]],
            depends_on=("03-redis", "02-model_server"),
        )
        for key in ((share, number) for number in range(PROCESSES) for share in SHARES)
    }
    pattern = PATTERNS["03"].without("proxy", "worker").with_processes(*proxies.values())
    posts: dict[Key, list[float]] = {key: [] for key in proxies}
    jobs: dict[str, list[float]] = {share: [] for share in SHARES}
    async with stack_of(pattern) as stack, Redis(port=stack.ports["PORT_03_REDIS"]) as redis:
        queue = JobQueue(redis, KEYS)
        for number in range(rounds + 1):
            for key, proxy in proxies.items():
                await redis.flushall()
                posted = await requests_per_cpu_s(stack.process(f"03-{proxy.name}"), 32, seconds)
                if number:  # the first round warms up
                    posts[key].append(posted)
        for share in [*SHARES] * 2 * rounds:  # each time another worker
            await redis.flushall()
            await fill(redis, SHARES[share])
            jobs[share].append(await drain(stack, queue, env | ways[share]))
    return {"03 POST /predict, 32 connections": by_share(posts), "03 worker, jobs": jobs}


async def fill(redis: Redis, share: str | None) -> None:
    """Queue jobs as a proxy does that samples this share of its requests."""
    commands = Commands(redis, KEYS, ttl_s=3600)
    for number in range(JOBS):
        context = "request-id"
        if share is not None:
            is_sampled = number % round(1 / float(share)) == 0
            context += f" 00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{is_sampled:02x}"
        await commands.run("enqueue", f"{number:06x}", DATA, "normal", JOBS + 1, "", context)


async def drain(stack: DevStack, queue: JobQueue, env: Mapping[str, str]) -> float:
    """Jobs per second of CPU time of a worker that empties the queue, from its first claim on."""
    full = (await queue.stats()).normal
    worker = web_process("worker_traced", MODEL_WORKER, "PORT_03_WORKER_TRACED", 1, env=env)
    managed = await stack.start("03", replace(worker, ready=None))
    while (stats := await queue.stats()).normal == full:  # noqa: ASYNC110 - Redis has no event for it
        await asyncio.sleep(0.002)
    before, waiting = cpu_seconds(managed.pid), stats.normal + stats.processing
    while (stats := await queue.stats()).normal or stats.processing:  # noqa: ASYNC110 - the same
        await asyncio.sleep(0.005)
    spent = cpu_seconds(managed.pid) - before
    await stack.stop(managed)
    return waiting / spent


def stack_of(pattern: Pattern) -> DevStack:
    environ = {"MAX_QUEUE_LENGTH": "1000000"}
    return private_stack([pattern.number], RUN_DIR, table=PATTERNS | {pattern.number: pattern}, environ=environ)


def table(found: Mapping[str, Rates]) -> list[str]:
    """Rows of the table: the rate with traces off, and the median of the other rates to it, round by round."""
    rows = []
    for what, rates in found.items():
        ratios = [
            statistics.median(other / off for other, off in zip(rates[share], rates["off"], strict=True))
            for share in list(SHARES)[1:]
        ]
        cells = [f"{statistics.median(rates['off']):,.0f}", *(f"{100 * (ratio - 1):+.1f} %" for ratio in ratios)]
        rows.append(f"| {what} | {' | '.join(cells)} |")
    return rows


async def measure(rounds: int, seconds: float) -> dict[str, Rates]:
    async with AsyncExitStack() as exits:
        listener = socket.create_server((HOST, 0))
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        await exits.enter_async_context(web.serving(collector, listener))
        return await measure_06(url, rounds, seconds) | await measure_03(url, rounds, seconds)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.7)
    options = parser.parse_args()
    load = f"{os.getloadavg()[0]:.0f}"  # of others: before this starts
    found = asyncio.run(measure(options.rounds, options.seconds))
    rows = table(found)
    print("\n".join(rows))
    if options.output:
        result = {"machine": described(), "rows": rows, "rounds": options.rounds, "load": load, "rates": found}
        (options.output / "cost.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
