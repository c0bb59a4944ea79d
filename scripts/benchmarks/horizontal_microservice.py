"""Pattern 06 measured beside its baselines and alternatives: `python -m scripts.benchmarks.horizontal_microservice`.

Every target answers the same row with the same models. The targets take turns, so that what else the machine does
hits all of them, and medians over the rounds are compared. Absolute figures drift from machine to machine; the ratios
are what to read.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

from scripts.benchmarks.figures import Figure, add_output, of_load, report
from scripts.benchmarks.load import Load, measured
from scripts.devstack.machine import resident_mb
from serving_testing.processes import Process, free_port, running

ROOT = Path(__file__).parents[2]
PATTERN = ROOT / "06_horizontal_microservice_pattern"
ARTIFACTS = ROOT / "models/artifacts"
CLASSES = ("setosa", "versicolor", "virginica")
BODY = '{"data": [[5.1, 3.5, 1.4, 0.2]]}'
CONNECTIONS = (1, 16, 32)
DELAY_S = 0.02

BARE = "bare FastAPI endpoint"
SERVICE = "a service of ours"
PROXY = "the proxy"
SEQUENTIAL = "the proxy, one after the other"
FAN_OUTS = {
    "fan-out: client per request (book)": "book",
    "fan-out: shared httpx client": "httpx",
    "fan-out: httpx over aiohttp": "httpx-aiohttp",
    "fan-out: shared aiohttp session": "aiohttp",
}
BOOK, HTTPX, _, AIOHTTP = FAN_OUTS
SLOW_ONE = "one service of 20 ms"
SLOW_PROXY = "the proxy before three of 20 ms"
SLOW_SEQUENTIAL = "the same, one after the other"


class Servers:
    """The servers under test, each on a free port of this machine."""

    def __init__(self, stack: ExitStack, logs: Path) -> None:
        self._stack = stack
        self._logs = logs
        self.urls: dict[str, str] = {}
        self.processes: dict[str, Process] = {}

    def start(self, name: str, module: str, **env: str) -> str:
        """Its base URL, once it answers."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        environment = {"PORT": str(port), "LOG_FORMAT": "json", "PYTHONPATH": str(ROOT), **env}
        log = self._logs / f"{len(self.urls)}.log"
        self.processes[name] = self._stack.enter_context(
            running(module, cwd=PATTERN, env=environment, log=log, ready=f"{url}/health")
        )
        self.urls[name] = url
        return url

    def start_all(self) -> None:
        services = {
            name: self.start(
                SERVICE if name == "setosa" else name, "src.services.app", SERVICE_NAME=name, MODEL_FILEPATH=model(name)
            )
            for name in CLASSES
        }
        self.start(BARE, "scripts.benchmarks.apps.bare", MODEL_FILEPATH=model("setosa"))
        self.start(PROXY, "src.proxy.app", SERVICES=listed(services))
        self.start(SEQUENTIAL, "scripts.benchmarks.apps.pattern_06 sequential", SERVICES=listed(services))
        for name, client in FAN_OUTS.items():
            urls = ",".join(f"{url}/predict" for url in services.values())
            self.start(name, "scripts.benchmarks.apps.fan_out", CLIENT=client, URLS=urls)

    def start_slow(self) -> None:
        slow = {
            name: self.start(
                SLOW_ONE if name == "setosa" else f"slow {name}",
                "scripts.benchmarks.apps.pattern_06 slow",
                SERVICE_NAME=name,
                MODEL_FILEPATH=model(name),
                DELAY_S=str(DELAY_S),
            )
            for name in CLASSES
        }
        self.start(SLOW_PROXY, "src.proxy.app", SERVICES=listed(slow))
        self.start(SLOW_SEQUENTIAL, "scripts.benchmarks.apps.pattern_06 sequential", SERVICES=listed(slow))


def model(name: str) -> str:
    return str(ARTIFACTS / f"iris_svc_0_{name}.onnx")


def listed(services: Mapping[str, str]) -> str:
    return ",".join(f"{name}={url}" for name, url in services.items())


def measure(
    urls: Mapping[str, str], connections: tuple[int, ...], rounds: int, seconds: float
) -> dict[tuple[str, int], list[Load]]:
    """The rounds by target and number of connections; the targets take turns in every round."""
    runs: dict[tuple[str, int], list[Load]] = {(name, count): [] for name in urls for count in connections}
    for url in urls.values():
        measured(f"{url}/predict", 16, 0.5, BODY)  # warms it up
    for number in range(rounds):
        for name, count in runs:
            print(f"\rround {number + 1} of {rounds}: {name}, {count} connections".ljust(79), end="", file=sys.stderr)
            runs[name, count].append(measured(f"{urls[name]}/predict", count, seconds, BODY))
    print(file=sys.stderr)
    return runs


def cold_start_s(name: str, module: str, logs: Path, **env: str) -> float:
    """From the start of the process to its first 200."""
    with ExitStack() as stack:
        started = time.perf_counter()
        Servers(stack, logs).start(name, module, **env)
        return time.perf_counter() - started


def figures(fast: Mapping[tuple[str, int], list[Load]], slow: Mapping[tuple[str, int], list[Load]]) -> Iterator[Figure]:
    """All targets at all numbers of connections, and what we promise of them."""
    for group, runs in (("Requests", fast), (f"Requests to services of {DELAY_S * 1000:.0f} ms", slow)):
        for (name, count), loads in runs.items():
            yield from of_load(group, f"{name}, {count} connection{'s' * (count > 1)}", *loads)

    def ratio(what: str, value: float, **bound: float) -> Figure:
        return Figure(group="Ratios", what=what, measure="ratio", value=value, unit="x", **bound)

    bare = rate(fast[SERVICE, 32]) / rate(fast[BARE, 32])
    yield ratio("a service to a bare FastAPI endpoint, 32 connections", bare, at_least=0.5)
    for rival, target in ((AIOHTTP, 0.45), (HTTPX, 4), (BOOK, 15)):
        value = rate(fast[PROXY, 16]) / rate(fast[rival, 16])
        yield ratio(f"the proxy to {rival.removeprefix('fan-out: ')}, 16 connections", value, at_least=target)
    value = p50(fast[PROXY, 1]) / p50(fast[AIOHTTP, 1])
    yield ratio("p50 of the proxy to a shared aiohttp session's, 1 connection", value, at_most=2.5)
    value = p50(slow[SLOW_SEQUENTIAL, 1]) / p50(slow[SLOW_PROXY, 1])
    yield ratio("p50 one after the other to parallel, services of 20 ms", value, at_least=2)


def rate(loads: list[Load]) -> float:
    return statistics.median(load.rate for load in loads)


def p50(loads: list[Load]) -> float:
    return statistics.median(load.percentile(50) for load in loads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of load for each target in each round")
    add_output(parser)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        env = {"SERVICE_NAME": "setosa", "MODEL_FILEPATH": model("setosa")}
        starts = [cold_start_s(SERVICE, "src.services.app", logs, **env) for _ in range(options.rounds)]
        with ExitStack() as stack:
            servers = Servers(stack, logs)
            servers.start_all()
            targets = {name: url for name, url in servers.urls.items() if name not in CLASSES}
            fast = measure(targets, CONNECTIONS, options.rounds, options.seconds)
            service_mb = resident_mb(servers.processes[SERVICE].popen.pid)
            proxy_mb = resident_mb(servers.processes[PROXY].popen.pid)
        with ExitStack() as stack:
            servers = Servers(stack, logs)
            servers.start_slow()
            slow = measure(
                {name: servers.urls[name] for name in (SLOW_ONE, SLOW_PROXY, SLOW_SEQUENTIAL)},
                (1, 16),
                options.rounds,
                options.seconds,
            )

    start, memory = statistics.median(starts), {"a service": service_mb or 0, "the proxy": proxy_mb or 0}
    first = Figure(
        group="Process", what="a service, to its first 200", measure="start", value=start, unit="s", at_most=1.5
    )
    after = [
        Figure(group="Process", what=f"{name}, after the load", measure="memory", value=mb, unit="MB", at_most=130)
        for name, mb in memory.items()
    ]
    report([*figures(fast, slow), first, *after], options.json)


if __name__ == "__main__":
    main()
