"""02: versions come and go, one of them broken; both ports get garbage; the server is killed.

Clients ask over gRPC and over REST. Only while a killed server is down may they see UNAVAILABLE, or no connection.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import httpx

from scripts.chaos.faults import RUN_DIR, back, garbage, kill, process
from scripts.chaos.proof import Problem, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import build_models, free_ports, private_stack
from scripts.devstack.table import ROOT
from tfserving_protos import messages
from tfserving_protos.services import PredictionServiceStub

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scripts.devstack.stack import DevStack
    from scripts.devstack.table import Pattern

CLIENTS = 6  # half of them over gRPC
DEADLINE_S = 10
FLOWER = [5.1, 3.5, 1.4, 0.2]
SERVER = "model_server"
# Without it, a channel waits longer and longer between its attempts to connect, and reports what was.
CHANNEL = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)]
BAD_BODIES = (
    b"",
    b"\xff\xfe\x00",
    b'{"instances": [[1, 2',
    b'{"instances": "setosa"}',
    b'{"instances": [[1, 2], [3]]}',
)


def pattern_with(base_path: Path) -> Pattern:
    """02 with a folder of its own for the versions of its model."""
    (server,) = PATTERNS["02"].processes
    argv = [f"--model_base_path={base_path}" if "model_base_path" in word else word for word in server.argv]
    return replace(PATTERNS["02"], processes=(replace(server, argv=tuple(argv)),))


def judged(probabilities: Sequence[float]) -> Problem | None:
    """What is wrong with the answer to FLOWER, a setosa."""
    right = len(probabilities) == 3 and probabilities[0] > 0.9
    return None if right else Problem(f"the answer is {probabilities}")


async def prove(proof: Proof) -> None:
    """New versions, a broken one, garbage, kill -9; in the long form again and again."""
    proof.failure = "any error but UNAVAILABLE or a broken connection while the server is down, or a wrong prediction"
    proof.grace_s = 1.0
    await build_models(PATTERNS["02"].artifacts)
    versions = RUN_DIR / "02-versions"
    made = ROOT / "models/artifacts/saved_model/iris/1"
    shutil.rmtree(versions, ignore_errors=True)
    shutil.copytree(made, versions / "1")
    ports = free_ports(["02"])
    table = PATTERNS | {"02": pattern_with(versions)}
    async with (
        private_stack(["02"], RUN_DIR, ports=ports, table=table) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_02_REST"], timeout=DEADLINE_S, trust_env=False) as rest,
        AsyncExitStack() as channels,
    ):
        stubs = [
            PredictionServiceStub(
                await channels.enter_async_context(
                    grpc.aio.insecure_channel(f"127.0.0.1:{ports['PORT_02_GRPC']}", options=CHANNEL)
                )
            )
            for _ in range(CLIENTS // 2)
        ]
        async with proof.clients(CLIENTS, lambda number: _ask(proof, number, stubs, rest)):
            await asyncio.sleep(1)
            version = 1
            for _ in range(proof.rounds(short=2, long=8)):
                version += 1
                async with proof.incident("new version", SERVER, is_outage=False):
                    publish(made, versions / str(version))
                    await served(rest, version)
                    await proof.all_well(since=time.monotonic())
                async with proof.incident("broken version", SERVER, is_outage=False):
                    broken = versions / str(version + 1)
                    publish(made, broken, with_graph=b"not a graph" * 100)
                    await reported(rest, version + 1)
                    await proof.all_well(since=time.monotonic())
                    shutil.rmtree(broken)
                for port in ("PORT_02_GRPC", "PORT_02_REST"):
                    async with proof.incident("garbage", f"{port[8:]} port", is_outage=False) as incident:
                        await garbage(ports[port], connections=100)
                        for body in BAD_BODIES if port == "PORT_02_REST" else ():
                            answer = await rest.post("/v1/models/iris:predict", content=body)
                            if not 400 <= answer.status_code < 500:
                                proof.fail(f"{body!r} was answered with {answer.status_code}")
                        await proof.all_well(since=incident.started)
                await _kill(proof, stack)


async def _kill(proof: Proof, stack: DevStack) -> None:
    async with proof.incident("kill -9", SERVER):
        server = process(stack, f"02-{SERVER}")
        await back(server, kill(server))
        await proof.all_well(since=time.monotonic())


async def _ask(
    proof: Proof, number: int, stubs: Sequence[PredictionServiceStub], rest: httpx.AsyncClient
) -> tuple[str, Problem | None]:
    proof.accepted += 1
    if number < len(stubs):
        return "gRPC", await _ask_grpc(proof, stubs[number])
    return "REST", await _ask_rest(proof, rest)


async def _ask_grpc(proof: Proof, stub: PredictionServiceStub) -> Problem | None:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    tensor = request.inputs["input"]
    tensor.dtype = messages.DT_FLOAT
    for size in (1, len(FLOWER)):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(FLOWER)
    try:
        return judged((await stub.Predict(request, timeout=DEADLINE_S)).outputs["output"].float_val)
    except grpc.aio.AioRpcError as exc:
        if exc.code() is grpc.StatusCode.UNAVAILABLE:
            return Problem(str(exc.details()), blame=SERVER)
        proof.lost += exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return Problem(f"{exc.code().name}: {exc.details()}")


async def _ask_rest(proof: Proof, rest: httpx.AsyncClient) -> Problem | None:
    try:
        response = await rest.post("/v1/models/iris:predict", json={"instances": [FLOWER]})
    except httpx.TimeoutException:
        proof.lost += 1
        return Problem(f"no answer within {DEADLINE_S} s")
    except httpx.TransportError as exc:
        return Problem(f"{type(exc).__name__}: {exc}", blame=SERVER)
    if response.status_code != 200:
        return Problem(f"status {response.status_code}: {response.text[:200]}")
    return judged(response.json()["predictions"][0])


def publish(made: Path, version: Path, with_graph: bytes | None = None) -> None:
    """A version that appears all at once, as build_model.py writes it; with these bytes for a graph, a broken one."""
    hidden = version.with_name(f".{version.name}")
    shutil.copytree(made, hidden)
    if with_graph is not None:
        (hidden / "saved_model.pb").write_bytes(with_graph)
    hidden.rename(version)


async def _status(rest: httpx.AsyncClient) -> dict[str, tuple[str, str]]:
    status = (await rest.get("/v1/models/iris")).json()["model_version_status"]
    return {each["version"]: (each["state"], each["status"]["error_code"]) for each in status}


async def served(rest: httpx.AsyncClient, version: int) -> None:
    """Returns when this version is available, and no other is any more."""
    while True:
        status = await _status(rest)
        if [number for number, (state, _) in status.items() if state == "AVAILABLE"] == [str(version)]:
            return
        await asyncio.sleep(0.05)


async def reported(rest: httpx.AsyncClient, version: int) -> None:
    """Returns when this version has ended with an error."""
    while (await _status(rest)).get(str(version), ("", "OK"))[1] == "OK":
        await asyncio.sleep(0.05)
