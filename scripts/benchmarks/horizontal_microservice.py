"""06's services and proxy, beside a bare endpoint, a sequential proxy and fan-outs with other HTTP clients.

Every target answers the same row with the same models. The targets take turns in every round, so that other load on the
machine affects all of them alike.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from scripts.benchmarks.harness import ROW, TYPICAL_CONNECTIONS, Benchmark, Endpoint, plural
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST, ProcessDefinition, web_process

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scripts.benchmarks.load import Load
    from scripts.devstack.stack import DevStack

BODY = {"data": [ROW]}
PATTERN = PATTERNS["06"]
MODEL = {"MODEL_FILEPATH": f"{{root}}/models/artifacts/{PATTERN.artifacts[0]}.onnx"}
URLS = {label: f"http://{HOST}:{{PORT_06_SERVICE_{label.upper()}}}" for label in FLOWERS}
DELAY_S = 0.02
SEQUENTIAL_PROXY = "tests.sequential_proxy"  # the pattern's own proxy, which calls one service after the other

SERVICE, BARE, PROXY = "a service of ours", "bare FastAPI endpoint", "the proxy"
SEQUENTIAL = "the proxy, one after the other"
BOOK, HTTPX, AIOHTTP = "client per request (book)", "shared httpx client", "shared aiohttp session"
CLIENTS = {BOOK: "book", HTTPX: "httpx", "httpx over aiohttp": "httpx-aiohttp", AIOHTTP: "aiohttp"}
SLOW_ONE = "one service of 20 ms"
SLOW_PROXY = "the proxy before three of 20 ms"
SLOW_SEQUENTIAL = "the same, one after the other"

Rounds = dict[tuple[str, int], list["Load"]]


def proxy(name: str, urls: Mapping[str, str], module: str = "src.proxy.app") -> ProcessDefinition:
    """A proxy in front of these services."""
    services = ",".join(f"{label}={url}" for label, url in urls.items())
    return web_process(name, module, f"PORT_06_{name.upper()}", 1, env={"SERVICES": services})


def app(name: str, module: str, **env: str) -> ProcessDefinition:
    """A server of scripts/benchmarks/apps."""
    return web_process(name, f"scripts.benchmarks.apps.{module}", f"PORT_06_{name.upper()}", 1, env=env, folder=".")


VARIANT = PATTERN.with_processes(*(proxy(f"proxy_{n}", dict([*URLS.items()][:n])) for n in range(1, len(URLS) + 1)))
FANNING_OUT = f"What fanning out costs, {plural(TYPICAL_CONNECTIONS)}"
ENDPOINTS = [
    Endpoint("06 prediction", "PORT_06_PROXY", "/predict/label", lambda: BODY),
    *(
        Endpoint(what, port, "/predict", lambda: BODY, connections=(TYPICAL_CONNECTIONS,), group=FANNING_OUT)
        for what, port in {
            "06, a service alone": "PORT_06_SERVICE_SETOSA",
            **{f"06, a proxy before {n} of them": f"PORT_06_PROXY_{n}" for n in range(1, len(URLS) + 1)},
        }.items()
    ),
]


async def measure(benchmark: Benchmark) -> None:
    """Fast services with all targets, slow services with three; start and memory."""
    rounds, seconds = benchmark.choose(quick=(1, 0.1), short=(3, 0.5), long=(5, 2.0))
    urls = ",".join(f"{url}/predict" for url in URLS.values())
    fan_outs = {what: f"fan_out_{number}" for number, what in enumerate(CLIENTS)}
    fast_pattern = PATTERN.with_processes(
        app("bare", "bare", **MODEL),
        proxy("sequential", URLS, SEQUENTIAL_PROXY),
        *(app(name, "fan_out", CLIENT=CLIENTS[what], URLS=urls) for what, name in fan_outs.items()),
    )
    fast_ports = {SERVICE: "SERVICE_SETOSA", BARE: "BARE", PROXY: "PROXY", SEQUENTIAL: "SEQUENTIAL"}
    fast_ports |= {f"fan-out: {what}": name.upper() for what, name in fan_outs.items()}
    alone = PATTERN.without(*(each.name for each in PATTERN.processes if each.name != "service_setosa"))
    starts = []
    for _ in range(rounds):
        async with benchmark.stack(alone) as stack:
            starts.append(stack.process("06-service_setosa").ready_after_s)
    benchmark.add("Process", "a service, to its first 200", "start", statistics.median(starts), "s", at_most=1.5)
    async with benchmark.stack(fast_pattern) as stack:
        fast = await take_turns(benchmark, stack, fast_ports, (1, 16, 32), rounds, seconds)
        service, the_proxy = stack.process("06-service_setosa"), stack.process("06-proxy")
        memory = {"a service": resident_mb(service.pid) or 0, "the proxy": resident_mb(the_proxy.pid) or 0}
    add_group(benchmark, "Requests", fast)
    add_ratios(benchmark, fast)
    for name, megabytes in memory.items():
        benchmark.add("Process", f"{name}, after the load", "memory", megabytes, "MB", at_most=130)

    slow_urls = {label: f"http://{HOST}:{{PORT_06_SLOW_{label.upper()}}}" for label in URLS}
    slow_pattern = PATTERN.without(*(each.name for each in PATTERN.processes)).with_processes(
        *(app(f"slow_{label}", "bare", **MODEL, DELAY_S=str(DELAY_S)) for label in URLS),
        proxy("proxy", slow_urls),
        proxy("sequential", slow_urls, SEQUENTIAL_PROXY),
    )
    slow_ports = {SLOW_ONE: "SLOW_SETOSA", SLOW_PROXY: "PROXY", SLOW_SEQUENTIAL: "SEQUENTIAL"}
    async with benchmark.stack(slow_pattern) as stack:
        slow = await take_turns(benchmark, stack, slow_ports, (1, 16), rounds, seconds)
    add_group(benchmark, f"Requests to services of {1000 * DELAY_S:.0f} ms", slow)
    ratio = p50(slow[SLOW_SEQUENTIAL, 1]) / p50(slow[SLOW_PROXY, 1])
    benchmark.add_ratio("p50 one after the other to parallel, services of 20 ms", ratio, at_least=2)


async def take_turns(
    benchmark: Benchmark,
    stack: DevStack,
    ports: Mapping[str, str],
    connections: Sequence[int],
    rounds: int,
    seconds: float,
) -> Rounds:
    """The rounds by target and number of connections."""
    urls = {name: f"{stack.urls[f'PORT_06_{port}']}/predict" for name, port in ports.items()}
    loads: Rounds = {(name, count): [] for name in urls for count in connections}
    for url in urls.values():
        await benchmark.load(url, TYPICAL_CONNECTIONS, min(0.5, seconds), BODY)  # warm-up
    for number in range(rounds):
        benchmark.say(f"round {number + 1} of {rounds}")
        for (name, count), each in loads.items():
            each.append(await benchmark.load(urls[name], count, seconds, BODY))
    return loads


def add_group(benchmark: Benchmark, group: str, rounds: Rounds) -> None:
    """All targets at all numbers of connections."""
    for (name, count), loads in rounds.items():
        benchmark.add_loads(group, f"{name}, {plural(count)}", loads)


def add_ratios(benchmark: Benchmark, fast: Rounds) -> None:
    """The pattern's targets: the service to its baseline, the proxy to the alternatives."""
    bare = rate(fast[SERVICE, 32]) / rate(fast[BARE, 32])
    benchmark.add_ratio("a service to a bare FastAPI endpoint, 32 connections", bare, at_least=0.5)
    for alternative, target in ((AIOHTTP, 0.45), (HTTPX, 4), (BOOK, 15)):
        value = rate(fast[PROXY, 16]) / rate(fast[f"fan-out: {alternative}", 16])
        benchmark.add_ratio(f"the proxy to {alternative}, 16 connections", value, at_least=target)
    value = p50(fast[PROXY, 1]) / p50(fast[f"fan-out: {AIOHTTP}", 1])
    benchmark.add_ratio("p50 of the proxy to a shared aiohttp session's, 1 connection", value, at_most=2.5)


def rate(loads: Sequence[Load]) -> float:
    """Median of the requests per second."""
    return statistics.median(load.rate for load in loads)


def p50(loads: Sequence[Load]) -> float:
    """Median of the median latencies, in seconds."""
    return statistics.median(load.percentile(50) for load in loads)
