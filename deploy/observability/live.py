"""Runs every query of every dashboard against a live Prometheus: none may fail, and none may be empty.

python -m deploy.observability.live http://…:9090   # `make prove PROVE=alerts` does it with a stack of its own
"""

from __future__ import annotations

import asyncio
import sys

import httpx

from deploy.observability.dashboards import queries


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


async def check(url: str) -> int:
    """Exit code: 1 if a query is empty."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as client:
        empty = await empty_queries(client, url)
    print("\n".join([*empty, f"{len(queries()) - len(empty)} of {len(queries())} queries have values"]))
    return int(bool(empty))


if __name__ == "__main__":
    sys.exit(asyncio.run(check(sys.argv[1])))
