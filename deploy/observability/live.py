"""Runs every query of every dashboard against a live Prometheus: none may fail, and none may be empty.

python -m deploy.observability.live                 # the patterns on free ports, under load, for a minute
python -m deploy.observability.live http://…:9090   # a Prometheus that runs already
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import httpx

from deploy.observability.dashboards import queries
from scripts.devstack import metrics
from scripts.devstack.patterns import DEMOS, PATTERNS
from scripts.devstack.stack import private_stack
from scripts.devstack.table import ROOT

RUN_DIR = ROOT / ".run/observability"
INTERVAL = "1s"
WITHIN_S = 120


async def empty_queries(client: httpx.AsyncClient, url: str) -> list[str]:
    """The queries without a value, as `dashboard, panel: query`. Raises ValueError for one that Prometheus rejects."""
    empty = []
    for dashboard, panel, query in queries():
        answer = (await client.get(f"{url}/api/v1/query", params={"query": query})).json()
        if answer["status"] != "success":
            raise ValueError(f"{dashboard}, {panel}: {answer['error']}")
        if not [each for each in answer["data"]["result"] if each["value"][1] != "NaN"]:
            empty.append(f"{dashboard}, {panel}: {query}")
    return empty


async def send_demos(client: httpx.AsyncClient, urls: dict[str, str]) -> None:
    """Send the requests of all demos, again and again, until cancelled."""

    async def repeat(number: str) -> None:
        while True:
            async for _ in DEMOS[number](client, urls):
                pass

    async with asyncio.TaskGroup() as group:
        for number in DEMOS:
            group.create_task(repeat(number))


async def check_all() -> int:
    """Exit code: 0 once no query is empty, 1 if one still is after two minutes."""
    table = metrics.with_prometheus(PATTERNS)
    if metrics.NUMBER not in table:
        print(metrics.MISSING)
        return 1
    stack = private_stack([*PATTERNS, metrics.NUMBER], RUN_DIR, table=table)
    metrics.configure(stack, RUN_DIR, interval=INTERVAL)
    async with stack, httpx.AsyncClient(timeout=60, trust_env=False) as client:
        load = asyncio.create_task(send_demos(client, stack.urls))
        await asyncio.sleep(3)
        # Until a service has failed, there is no series of failures.
        os.kill(stack.process("06-service_virginica").pid, signal.SIGKILL)
        deadline = time.monotonic() + WITHIN_S
        empty = ["not asked"]
        while empty and time.monotonic() < deadline:
            await asyncio.sleep(2)
            empty = await empty_queries(client, stack.urls["PORT_PROMETHEUS"])
        load.cancel()
    return report(empty)


async def check(url: str) -> int:
    """The same for a Prometheus that runs already."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        return report(await empty_queries(client, url))


def report(empty: list[str]) -> int:
    """Print the result; the exit code."""
    print("\n".join([*empty, f"{len(queries()) - len(empty)} of {len(queries())} queries have values"]))
    return int(bool(empty))


if __name__ == "__main__":
    sys.exit(asyncio.run(check(sys.argv[1]) if sys.argv[1:] else check_all()))
