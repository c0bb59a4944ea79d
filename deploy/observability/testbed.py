"""All patterns under load, and a Prometheus with the rules of this folder, whose times are FACTOR times shorter.

That goes for the windows of the rules, what their alerts wait for, the objectives of more than a minute, and the
settings in SCALED. What takes its time in any case, such as the start of a process, is not scaled.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from scripts.chaos.faults import Relay
from scripts.devstack import metrics
from scripts.devstack.load import PatternLoad
from scripts.devstack.patterns import PATTERNS, WORKS
from scripts.devstack.patterns.sync_async import photograph_body
from scripts.devstack.stack import DevStack, free_ports, private_stack
from scripts.devstack.table import HOST, ROOT, Pattern, mysql_process

FACTOR = 4
RUN_DIR = ROOT / ".run/alerts"
INTERVAL = "1s"
SCALED = {"HEARTBEAT_S": "1", "JOB_WAIT_SECONDS": "5"}  # 10 and 60 s; a process needs some seconds more to start
RATES = {"02": 10.0, "03": 10.0, "04": 5.0, "06": 10.0, "07": 1.0}  # requests per second
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LOAD_S = 10  # that Prometheus has seen before a fault
WELL_WITHIN_S = 120
OLDEST_JOB_S = 3.0  # while nothing is wrong
OLDEST_ROW_S = 30.0


def scaled(rules: str) -> str:
    """The text of a file of rules, with times that are FACTOR times shorter."""

    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{int(found[2]) * UNITS[found[3]] // FACTOR}s"

    rules = re.sub(r"(\[|\bfor: )(\d+)([smhd])(?=\]|$)", shorter, rules, flags=re.MULTILINE)
    return re.sub(r"(?<=> bool )\d{3,}", lambda found: str(int(found[0]) // FACTOR), rules)


@dataclass(kw_only=True)
class Testbed:
    """The patterns, and what Prometheus knows about them."""

    stack: DevStack
    loads: Mapping[str, PatternLoad]
    """By pattern."""
    relay: Relay
    """In front of 06's service virginica."""
    client: httpx.AsyncClient

    @property
    def scraped(self) -> int:
        """The number of processes that Prometheus asks."""
        return sum(managed.definition.metrics is not None for managed in self.stack.processes)

    async def query(self, query: str) -> list[dict[str, Any]]:
        """The samples of a query. Raises ValueError for one that Prometheus rejects."""
        url = f"{self.stack.urls['PORT_PROMETHEUS']}/api/v1/query"
        answer = (await self.client.get(url, params={"query": query})).json()
        if answer["status"] != "success":
            raise ValueError(f"{query}: {answer['error']}")
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    async def fired(self, since: float) -> set[str]:
        """The alerts that have fired after this moment of time.monotonic(), as "ProcessDown 03"."""
        window_s = max(1, int(time.monotonic() - since))
        found = await self.query(f'max_over_time(ALERTS{{alertstate="firing"}}[{window_s}s])')
        return {f"{each['metric']['alertname']} {each['metric']['pattern']}" for each in found}

    async def forget(self) -> None:
        """Start Prometheus again, with an empty memory, and let it see some load."""
        prometheus = self.stack.process(f"{metrics.NUMBER}-prometheus")
        await self.stack.stop(prometheus)
        shutil.rmtree(RUN_DIR / metrics.NUMBER)
        await self.stack.start(metrics.NUMBER, prometheus.definition)
        await self.wait_well()
        await asyncio.sleep(LOAD_S)

    async def wait_idle(self, pattern: str) -> None:
        """Return when no job and no row of this pattern waits. Raises TimeoutError."""
        own = f'{{pattern="{pattern}"}}'
        await self._wait_below({f"sum(queue_length{own})": 1, f"max(rows_waiting{own})": 1})

    async def wait_well(self) -> None:
        """Return when every process answers, and nothing waits for long. Raises TimeoutError."""
        ages = {"max(queue_oldest_job_age_seconds)": OLDEST_JOB_S, "max(rows_oldest_waiting_age_seconds)": OLDEST_ROW_S}
        await self._wait_below({f"{self.scraped} - (sum(up) or vector(0))": 1} | ages)

    async def _wait_below(self, limits: Mapping[str, float]) -> None:
        async def is_reached(expression: str) -> bool:
            return any(float(sample["value"][1]) >= limits[expression] for sample in await self.query(expression))

        async with asyncio.timeout(WELL_WITHIN_S):
            for expression in limits:
                while await is_reached(expression):  # noqa: ASYNC110 - Prometheus has no event for it
                    await asyncio.sleep(0.5)


def table() -> dict[str, Pattern]:
    """All patterns and Prometheus; 04 on a database server."""
    patterns = metrics.with_prometheus(PATTERNS)
    api = patterns["04"].with_changes("api", depends_on=("04-database",))
    return patterns | {"04": api.with_processes(mysql_process("PORT_04_DATABASE"))}


@asynccontextmanager
async def patterns_under_load(numbers: Collection[str]) -> AsyncIterator[Testbed]:
    """These patterns and Prometheus, on free ports and with empty state."""
    patterns = table()
    ports = free_ports(patterns, patterns)
    relayed = free_ports(["06"])["PORT_06_SERVICE_VIRGINICA"]
    services = {name: ports[f"PORT_06_SERVICE_{name.upper()}"] for name in ("setosa", "versicolor")}
    services["virginica"] = relayed
    environ = SCALED | {
        "DATABASE_URL": f"mysql+pymysql://app@{HOST}:{ports['PORT_04_DATABASE']}/items",
        "RATE_LIMIT": "20/second",
        "SERVICES": ",".join(f"{name}=http://{HOST}:{port}" for name, port in services.items()),
    }
    stack = private_stack([*numbers, metrics.NUMBER], RUN_DIR, table=patterns, ports=ports, environ=environ)
    rules = [RUN_DIR / "rules" / source.name for source in metrics.RULES]
    for path, source in zip(rules, metrics.RULES, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scaled(source.read_text(encoding="utf-8")), encoding="utf-8")
    metrics.configure(stack, RUN_DIR, rules=rules, interval=INTERVAL)
    async with AsyncExitStack() as exits:
        relay = await exits.enter_async_context(Relay(relayed, ports["PORT_06_SERVICE_VIRGINICA"]))
        await exits.enter_async_context(stack)
        # 07's objective is about photographs that callers send.
        works = WORKS | {"07": replace(WORKS["07"], method="POST", path="/predict", body=photograph_body())}
        loads = {}
        for number in numbers:
            work = works[number]
            client = httpx.AsyncClient(base_url=stack.urls[work.port], timeout=30, trust_env=False)
            await exits.enter_async_context(client)
            # Not followed to its end: while a store is away, asking for all that waits would be most of the load.
            handed_over = replace(work, job="", stored="", state=lambda answer: "completed")
            loads[number] = PatternLoad(handed_over, client, RUN_DIR / number)
            exits.push_async_callback(loads[number].close)
            loads[number].send(RATES[number])
        client = await exits.enter_async_context(httpx.AsyncClient(timeout=10, trust_env=False))
        yield Testbed(stack=stack, loads=loads, relay=relay, client=client)
