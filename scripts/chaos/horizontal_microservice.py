"""06: services are killed, hang and answer garbage; proxy and services receive garbage. The proxy keeps answering.

Clients send POST /predict; every response must be 200 with three right predictions. Only while a service is down may
its own entry be an error instead.
"""

import asyncio
import time
from itertools import cycle, islice

import httpx

from scripts.chaos.faults import Relay, garbage
from scripts.chaos.harness import ChaosRun, Violation
from scripts.devstack.faults import hanging, kill_and_wait
from scripts.devstack.stack import free_ports
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST

CLIENTS = 6
DEADLINE_S = 5
FAULT_LASTS_S = 2
BODY = {"data": [FLOWERS["setosa"]]}
BAD_BODIES = (b"", b"\xff\xfe\x00", b'{"data": [[1, 2', b'{"data": "setosa"}', b'{"data": [[5.1, 3.5, 1.4, 1e999]]}')


def violation_of(response: httpx.Response) -> Violation | None:
    """How a response to BODY is wrong."""
    if response.status_code != 200:
        return Violation(f"status {response.status_code}: {response.text[:200]}")
    entries = response.json()
    if list(entries) != list(FLOWERS):
        return Violation(f"the entries are {list(entries)}")
    for name, entry in entries.items():
        if "error" not in entry and (entry["prediction"][0] > 0.5) != (name == "setosa"):
            return Violation(f"{name} predicts {entry['prediction']}")
    missing = [f"service_{name}" for name, entry in entries.items() if "error" in entry]
    blame = missing[0] if len(missing) == 1 else ""
    return Violation(f"{', '.join(missing)} missing", blame) if missing else None


async def inject(run: ChaosRun) -> None:
    """Three kinds of failure for each service in turn, and garbage."""
    run.failure = "not 200, a wrong prediction, or an error entry of a service that was up"
    run.expected_label = "partial"
    ports = free_ports(["06"])
    relayed = free_ports(["06"])["PORT_06_SERVICE_VIRGINICA"]
    service_ports = {name: ports[f"PORT_06_SERVICE_{name.upper()}"] for name in FLOWERS} | {"virginica": relayed}
    services = ",".join(f"{name}=http://{HOST}:{port}" for name, port in service_ports.items())
    async with (
        Relay(relayed, ports["PORT_06_SERVICE_VIRGINICA"]) as relay,
        run.stack(run.pattern, ports, {"SERVICES": services}) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_06_PROXY"], timeout=DEADLINE_S, trust_env=False) as client,
    ):

        async def send(_number: int) -> tuple[str, Violation | None]:
            run.accepted += 1
            response = await run.request(client, "POST", "/predict", json=BODY)
            return "predict", response if isinstance(response, Violation) else violation_of(response)

        async with run.clients(CLIENTS, send):
            await asyncio.sleep(1)
            for name in islice(cycle(FLOWERS), run.choose(quick=1, short=3, long=18)):
                service = stack.process(f"06-service_{name}")
                async with run.incident("kill -9", f"service_{name}"):
                    await kill_and_wait(stack, service)
                    await run.recovered(since=time.monotonic())
                async with run.incident("hang", f"service_{name}") as incident:
                    async with hanging(service):
                        await asyncio.sleep(FAULT_LASTS_S)
                    await run.recovered(since=incident.end_fault())
                async with run.incident("lie", "service_virginica") as incident:
                    relay.lies = True
                    await asyncio.sleep(FAULT_LASTS_S)
                    relay.lies = False
                    await run.recovered(since=incident.end_fault())
                for port in ("PORT_06_PROXY", f"PORT_06_SERVICE_{name.upper()}"):
                    async with run.incident("garbage", port[8:].lower(), is_outage=False) as incident:
                        await garbage(ports[port], connections=100)
                        await run.send_bad_bodies(client, f"{stack.urls[port]}/predict", BAD_BODIES, range(400, 500))
                        await run.recovered(since=incident.started)
