"""06: services are killed, hang, lie; proxy and services get garbage. The proxy answers all the while.

Clients ask POST /predict, and every answer must be 200 with three right predictions. Only while a service is ill may
its own entry be an error instead.
"""

from __future__ import annotations

import asyncio
import time
from itertools import cycle, islice

import httpx

from scripts.chaos.faults import RUN_DIR, Relay, back, garbage, hanging, kill, process
from scripts.chaos.proof import Problem, Proof
from scripts.devstack.stack import free_ports, private_stack
from scripts.devstack.table import HOST

CLIENTS = 6
DEADLINE_S = 5
ILL_FOR_S = 2
FLOWER = {"data": [[5.1, 3.5, 1.4, 0.2]]}
CLASSES = ("setosa", "versicolor", "virginica")
BAD_BODIES = (b"", b"\xff\xfe\x00", b'{"data": [[1, 2', b'{"data": "setosa"}', b'{"data": [[5.1, 3.5, 1.4, 1e999]]}')


def judged(response: httpx.Response) -> Problem | None:
    """What is wrong with an answer to FLOWER."""
    if response.status_code != 200:
        return Problem(f"status {response.status_code}: {response.text[:200]}")
    entries = response.json()
    if list(entries) != list(CLASSES):
        return Problem(f"the entries are {list(entries)}")
    for name, entry in entries.items():
        if "error" not in entry and (entry["prediction"][0] > 0.5) != (name == "setosa"):
            return Problem(f"{name} predicts {entry['prediction']}")
    ill = [f"service_{name}" for name, entry in entries.items() if "error" in entry]
    return Problem(f"{', '.join(ill)} missing", blame=ill[0] if len(ill) == 1 else "") if ill else None


async def prove(proof: Proof) -> None:
    """Three kinds of illness for each service in turn, in the long form again and again."""
    proof.failure = "not 200, a wrong prediction, or an error entry of a service that was well"
    proof.forgiven = "partial"
    ports = free_ports(["06"])
    relayed = free_ports(["06"])["PORT_06_SERVICE_VIRGINICA"]
    at = {name: ports[f"PORT_06_SERVICE_{name.upper()}"] for name in CLASSES} | {"virginica": relayed}
    services = ",".join(f"{name}=http://{HOST}:{port}" for name, port in at.items())
    async with (
        Relay(relayed, ports["PORT_06_SERVICE_VIRGINICA"]) as relay,
        private_stack(["06"], RUN_DIR, ports=ports, environ={"SERVICES": services}) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_06_PROXY"], timeout=DEADLINE_S, trust_env=False) as client,
    ):

        async def ask(_number: int) -> tuple[str, Problem | None]:
            proof.accepted += 1
            try:
                return "predict", judged(await client.post("/predict", json=FLOWER))
            except httpx.TimeoutException:
                proof.lost += 1
                return "predict", Problem(f"no answer within {DEADLINE_S} s")
            except httpx.HTTPError as exc:
                return "predict", Problem(f"{type(exc).__name__}: {exc}")

        async with proof.clients(CLIENTS, ask):
            await asyncio.sleep(1)
            for name in islice(cycle(CLASSES), proof.rounds(short=3, long=18)):
                service = process(stack, f"06-service_{name}")
                async with proof.incident("kill -9", f"service_{name}"):
                    await back(service, kill(service))
                    await proof.all_well(since=time.monotonic())
                async with proof.incident("hang", f"service_{name}") as incident:
                    async with hanging(service):
                        await asyncio.sleep(ILL_FOR_S)
                    await proof.all_well(since=incident.is_over())
                async with proof.incident("lie", "service_virginica") as incident:
                    relay.lies = True
                    await asyncio.sleep(ILL_FOR_S)
                    relay.lies = False
                    await proof.all_well(since=incident.is_over())
                for target in ("PORT_06_PROXY", f"PORT_06_SERVICE_{name.upper()}"):
                    async with proof.incident("garbage", target[8:].lower(), is_outage=False) as incident:
                        await garbage(ports[target], connections=100)
                        for body in BAD_BODIES:
                            answer = await client.post(f"http://{HOST}:{ports[target]}/predict", content=body)
                            if not 400 <= answer.status_code < 500:
                                proof.fail(f"{body!r} was answered with {answer.status_code}")
                        await proof.all_well(since=incident.started)
