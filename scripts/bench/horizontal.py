"""Pattern 06 measured beside its floors and its rivals, all in one run: `python -m scripts.bench.horizontal`.

Every target answers the same row with the same models. The targets take turns, so that what else the machine does
hits all of them, and medians over the rounds are compared. Absolute figures drift from machine to machine; the ratios
are what to read.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from scripts.bench.load import Load
from serving_common.testing import Process, free_port, running

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


@dataclass(frozen=True)
class Median:
    """Medians over the rounds: answers per second, latencies in milliseconds."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int

    @classmethod
    def of(cls, loads: list[Load]) -> "Median":
        return cls(
            statistics.median(load.rate for load in loads),
            statistics.median(load.percentile(50) for load in loads) * 1000,
            statistics.median(load.percentile(99) for load in loads) * 1000,
            sum(load.failed for load in loads),
        )


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
        self.start(BARE, "scripts.bench.apps.bare", MODEL_FILEPATH=model("setosa"))
        self.start(PROXY, "src.proxy.app", SERVICES=listed(services))
        self.start(SEQUENTIAL, "scripts.bench.apps.pattern_06 sequential", SERVICES=listed(services))
        for name, client in FAN_OUTS.items():
            urls = ",".join(f"{url}/predict" for url in services.values())
            self.start(name, "scripts.bench.apps.fan_out", CLIENT=client, URLS=urls)

    def start_slow(self) -> None:
        slow = {
            name: self.start(
                SLOW_ONE if name == "setosa" else f"slow {name}",
                "scripts.bench.apps.pattern_06 slow",
                SERVICE_NAME=name,
                MODEL_FILEPATH=model(name),
                DELAY_S=str(DELAY_S),
            )
            for name in CLASSES
        }
        self.start(SLOW_PROXY, "src.proxy.app", SERVICES=listed(slow))
        self.start(SLOW_SEQUENTIAL, "scripts.bench.apps.pattern_06 sequential", SERVICES=listed(slow))


def model(name: str) -> str:
    return str(ARTIFACTS / f"iris_svc_0_{name}.onnx")


def listed(services: Mapping[str, str]) -> str:
    return ",".join(f"{name}={url}" for name, url in services.items())


def load(url: str, connections: int, seconds: float) -> Load:
    """One run of the load generator, in a process of its own."""
    command = [sys.executable, "-m", "scripts.bench.load", f"{url}/predict", str(connections), str(seconds), BODY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


def measure(
    urls: Mapping[str, str], connections: tuple[int, ...], rounds: int, seconds: float
) -> dict[tuple[str, int], Median]:
    """Medians by target and number of connections; the targets take turns in every round."""
    runs: dict[tuple[str, int], list[Load]] = {(name, count): [] for name in urls for count in connections}
    for url in urls.values():
        load(url, 16, 0.5)  # warms it up
    for number in range(rounds):
        for name, count in runs:
            print(f"\rround {number + 1} of {rounds}: {name}, {count} connections".ljust(79), end="", file=sys.stderr)
            runs[name, count].append(load(urls[name], count, seconds))
    print(file=sys.stderr)
    return {key: Median.of(loads) for key, loads in runs.items()}


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1000


def cold_start_s(name: str, module: str, logs: Path, **env: str) -> float:
    """From the start of the process to its first 200."""
    with ExitStack() as stack:
        started = time.perf_counter()
        Servers(stack, logs).start(name, module, **env)
        return time.perf_counter() - started


def print_table(console: Console, medians: Mapping[tuple[str, int], Median], connections: tuple[int, ...]) -> None:
    table = Table("", *(f"{count} connection{'s' if count > 1 else ''}" for count in connections), box=box.MARKDOWN)
    for name in dict.fromkeys(name for name, _ in medians):
        cells = []
        for count in connections:
            median = medians[name, count]
            failed = f", {median.failed} FAILED" if median.failed else ""
            cells.append(f"{median.rate:,.0f}/s  p50 {median.p50_ms:.2f}  p99 {median.p99_ms:.1f} ms{failed}")
        table.add_row(name, *cells)
    console.print(table)


def print_ratio(console: Console, what: str, ratio: float, target: float, *, at_most: bool = False) -> None:
    met = ratio <= target if at_most else ratio >= target
    bound = "at most" if at_most else "at least"
    console.print(f"  {what:<62} {ratio:7.2f} x   ({bound} {target:g}: {'met' if met else 'MISSED'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of load for each target in each round")
    options = parser.parse_args()
    console = Console(width=160)
    names = [f"iris_svc_0_{name}" for name in CLASSES]
    subprocess.run([sys.executable, "-m", "models.build", "--only", *names], cwd=ROOT, check=True)

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

    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {options.rounds} rounds")
    print_table(console, fast, CONNECTIONS)
    print_table(console, slow, (1, 16))
    print_ratio(
        console,
        "a service to a bare FastAPI endpoint, 32 connections",
        fast[SERVICE, 32].rate / fast[BARE, 32].rate,
        0.5,
    )
    for rival, target in ((AIOHTTP, 0.45), (HTTPX, 4), (BOOK, 15)):
        print_ratio(
            console,
            f"the proxy to {rival.removeprefix('fan-out: ')}, 16 connections",
            fast[PROXY, 16].rate / fast[rival, 16].rate,
            target,
        )
    print_ratio(
        console,
        "p50 of the proxy to a shared aiohttp session's, 1 connection",
        fast[PROXY, 1].p50_ms / fast[AIOHTTP, 1].p50_ms,
        2.5,
        at_most=True,
    )
    print_ratio(
        console,
        "p50 one after the other to parallel, services of 20 ms",
        slow[SLOW_SEQUENTIAL, 1].p50_ms / slow[SLOW_PROXY, 1].p50_ms,
        2,
    )
    console.print(f"  cold start to the first 200: {statistics.median(starts):.2f} s (target 1.5)")
    console.print(
        f"  resident memory after the load: service {service_mb:.0f} MB, proxy {proxy_mb:.0f} MB (target 130)"
    )


if __name__ == "__main__":
    main()
