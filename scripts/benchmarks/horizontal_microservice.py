"""06's services and proxy, beside a bare endpoint, a sequential proxy and fan-outs with other HTTP clients.

Every target answers the same row with the same models, and they take turns, so that other load on the machine affects
all of them alike.
"""

import statistics
from collections.abc import Mapping, Sequence
from functools import partial

from scripts.benchmarks import harness
from scripts.benchmarks.harness import ROW, TYPICAL_CONNECTIONS, Benchmark, Endpoint, plural, rate_of, send_load
from scripts.devstack.machine import resident_mb
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST, ProcessDefinition, web_process
from serving_testing.load import Load

BODY = {"data": [ROW]}
PATTERN = PATTERNS["06"]
SERVICE_NAMES = [f"service_{label}" for label in FLOWERS]
DELAY_S = 0.02
SERVICE, BARE, PROXY = "a service of ours", "bare FastAPI endpoint", "the proxy"
CONTRACT = "FastAPI endpoint of the same contract"
SEQUENTIAL = "the proxy, one after the other"
BOOK, HTTPX, AIOHTTP = "client per request (book)", "shared httpx client", "shared aiohttp session"
CLIENTS = {BOOK: "book", HTTPX: "httpx", "httpx over aiohttp": "httpx-aiohttp", AIOHTTP: "aiohttp"}
SLOW_ONE = "one service of 20 ms"
SLOW_PROXY = "the proxy before three of 20 ms"
SLOW_SEQUENTIAL = "the same, one after the other"

p50 = partial(harness.latency_ms, percent=50)
Rounds = Mapping[tuple[str, int], Sequence[Load]]


def url_of(name: str) -> str:
    """Base URL of a service, with a placeholder for its port."""
    return f"http://{HOST}:{{PORT_06_{name.upper()}}}"


def process(name: str, module: str, **env: str) -> ProcessDefinition:
    """A server on a port of its own."""
    return web_process(name, module, f"PORT_06_{name.upper()}", 1, env=env)


def proxy(name: str, services: Sequence[str], module: str = "src.proxy.app") -> ProcessDefinition:
    """A proxy in front of these services."""
    listed = (f"{label}={url_of(service)}" for label, service in zip(FLOWERS, services, strict=False))
    return process(name, module, SERVICES=",".join(listed))


def bare_service(name: str, **env: str) -> ProcessDefinition:
    """The baseline of a service."""
    model = f"{{root}}/models/artifacts/{PATTERN.artifacts[0]}.onnx"
    return process(name, "tests.bare_service", MODEL_FILEPATH=model, **env)


COUNTS = range(1, len(SERVICE_NAMES) + 1)
VARIANT = PATTERN.with_processes(*(proxy(f"proxy_{count}", SERVICE_NAMES[:count]) for count in COUNTS))
SCALED = {"06, a service alone": "SERVICE_SETOSA"}
SCALED |= {f"06, a proxy before {count} of them": f"PROXY_{count}" for count in COUNTS}
scaled = partial(
    Endpoint,
    path="/predict",
    body=lambda: BODY,
    connections=(TYPICAL_CONNECTIONS,),
    group=f"What fanning out costs, {plural(TYPICAL_CONNECTIONS)}",
)
ENDPOINTS = [
    Endpoint("06 prediction", "PORT_06_PROXY", "/predict/label", lambda: BODY),
    *(scaled(what, f"PORT_06_{name}") for what, name in SCALED.items()),
]


async def measure(benchmark: Benchmark) -> None:
    """Start of a service, fast services with all targets, slow services with three."""
    starts = []
    alone = PATTERN.without("proxy", *SERVICE_NAMES[1:])
    for _ in range(benchmark.choose(quick=1, short=3, long=5)):
        async with benchmark.stack(alone) as stack:
            starts.append(stack.process("06-service_setosa").ready_after_s)
    benchmark.add("Process", "a service, to its first 200", "start", statistics.median(starts), "s", at_most=1.5)

    urls = ",".join(f"{url_of(name)}/predict" for name in SERVICE_NAMES)
    targets = {
        SERVICE: PATTERN.process("service_setosa"),
        BARE: bare_service("bare"),
        CONTRACT: process("contract", "tests.fastapi_service", **PATTERN.process("service_setosa").env),
        PROXY: PATTERN.process("proxy"),
        SEQUENTIAL: proxy("sequential", SERVICE_NAMES, "tests.sequential_proxy"),
    }
    for number, (what, client) in enumerate(CLIENTS.items()):
        targets[f"fan-out: {what}"] = process(f"fan_out_{number}", "tests.bare_fan_out", CLIENT=client, URLS=urls)
    fast = await take_turns(benchmark, "Requests", targets, SERVICE_NAMES[1:], (1, 16, 32))
    for what, (ours, others, count), bound in (
        ("a service to a bare FastAPI endpoint", (SERVICE, BARE, 1), 0.8),
        ("a service to a bare FastAPI endpoint", (SERVICE, BARE, 32), 0.5),
        ("a service to a FastAPI endpoint of the same contract", (SERVICE, CONTRACT, 32), 1.0),
        *(
            (f"the proxy to {what}", (PROXY, f"fan-out: {what}", 16), bound)
            for what, bound in ((AIOHTTP, 0.45), (HTTPX, 4.0), (BOOK, 15.0))
        ),
    ):
        ratio = rate_of(fast[ours, count]) / rate_of(fast[others, count])
        benchmark.add_ratio(f"{what}, {plural(count)}", ratio, at_least=bound)
    ratio = p50(fast[PROXY, 1]) / p50(fast[f"fan-out: {AIOHTTP}", 1])
    benchmark.add_ratio("p50 of the proxy to a shared aiohttp session's, 1 connection", ratio, at_most=2.5)

    slow_services = [bare_service(f"slow_{number}", DELAY_S=str(DELAY_S)) for number in COUNTS]
    names = [each.name for each in slow_services]
    sequential = proxy("sequential", names, "tests.sequential_proxy")
    targets = {SLOW_ONE: slow_services[0], SLOW_PROXY: proxy("proxy", names), SLOW_SEQUENTIAL: sequential}
    group = f"Requests to services of {1000 * DELAY_S:.0f} ms"
    slow = await take_turns(benchmark, group, targets, slow_services[1:], (1, 16))
    ratio = p50(slow[SLOW_SEQUENTIAL, 1]) / p50(slow[SLOW_PROXY, 1])
    benchmark.add_ratio("p50 one after the other to parallel, services of 20 ms", ratio, at_least=2)


async def take_turns(
    benchmark: Benchmark,
    group: str,
    targets: Mapping[str, ProcessDefinition],
    others: Sequence[ProcessDefinition | str],
    connections: Sequence[int],
) -> Rounds:
    """Load of all targets, which need these other processes, and the memory of service and proxy after it."""
    rounds, seconds = benchmark.choose(quick=(1, 0.1), short=(3, 0.5), long=(5, 2.0))
    needed = [PATTERN.process(each) if isinstance(each, str) else each for each in others]
    empty = PATTERN.without("proxy", *SERVICE_NAMES)
    async with benchmark.stack(empty.with_processes(*targets.values(), *needed)) as stack:
        urls = {what: f"{stack.process(f'06-{each.name}').url}/predict" for what, each in targets.items()}
        for url in urls.values():
            await send_load(url, TYPICAL_CONNECTIONS, min(0.5, seconds), BODY)  # warm-up
        cases = {
            (what, count): partial(send_load, url, count, seconds, BODY)
            for what, url in urls.items()
            for count in connections
        }
        loads = await harness.take_turns(rounds, cases)
        for what, name in ((SERVICE, "a service"), (PROXY, "the proxy")):
            if what in targets:
                megabytes = resident_mb(stack.process(f"06-{targets[what].name}").pid) or 0
                benchmark.add("Process", f"{name}, after the load", "memory", megabytes, "MB", at_most=130)
    for (what, count), each in loads.items():
        benchmark.add_loads(group, f"{what}, {plural(count)}", each)
    return loads
