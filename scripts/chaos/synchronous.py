"""02: versions are added and removed, one of them broken; both ports receive garbage; the server is killed.

Clients use gRPC and REST. Only while a killed server is down may they see UNAVAILABLE, or a broken connection.
"""

import asyncio
import shutil
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx

from scripts.chaos.faults import garbage
from scripts.chaos.harness import ChaosRun, Violation
from scripts.devstack.faults import kill_and_wait
from scripts.devstack.stack import build_models
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import HOST, ROOT
from tfserving_protos import messages
from tfserving_protos.services import PredictionServiceStub

CLIENTS = 6  # half of them over gRPC
DEADLINE_S = 10
FLOWER = FLOWERS["setosa"]
SERVER = "model_server"
# The default back-off would delay a channel's reconnect, and with it the measured recovery.
CHANNEL = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.use_local_subchannel_pool", 1)]
BAD_BODIES = (
    *(b"", b"\xff\xfe\x00", b'{"instances": [[1, 2', b'{"instances": "setosa"}'),
    b'{"instances": [[1, 2], [3]]}',
)


def violation_of(probabilities: Sequence[float]) -> Violation | None:
    """How the probabilities of FLOWER, a setosa, are wrong."""
    is_right = len(probabilities) == 3 and probabilities[0] > 0.9
    return None if is_right else Violation(f"the prediction is {probabilities}")


async def inject(run: ChaosRun) -> None:
    """New versions, a broken one, garbage, kill -9."""
    run.failure = "any error but UNAVAILABLE or a broken connection while the server is down, or a wrong prediction"
    run.grace_s = 1.0
    await build_models(run.pattern.artifacts)
    versions, built = run.run_dir / "02-versions", ROOT / "models/artifacts/saved_model/iris/1"
    shutil.rmtree(versions, ignore_errors=True)
    shutil.copytree(built, versions / "1")
    argv = [word for word in run.pattern.process(SERVER).argv if "model_base_path" not in word]
    pattern = run.pattern.with_changes(SERVER, argv=(*argv, f"--model_base_path={versions}"))
    async with (
        run.stack(pattern) as stack,
        httpx.AsyncClient(base_url=stack.urls["PORT_02_REST"], timeout=DEADLINE_S, trust_env=False) as rest,
        AsyncExitStack() as channels,
    ):
        target = f"{HOST}:{stack.ports['PORT_02_GRPC']}"
        stubs = [
            PredictionServiceStub(
                await channels.enter_async_context(grpc.aio.insecure_channel(target, options=CHANNEL))
            )
            for _ in range(CLIENTS // 2)
        ]

        async def send(number: int) -> tuple[str, Violation | None]:
            run.accepted += 1
            if number < len(stubs):
                return "gRPC", await _send_grpc(run, stubs[number])
            return "REST", await _send_rest(run, rest)

        async with run.clients(CLIENTS, send):
            await asyncio.sleep(1)
            for version in range(2, 2 + run.choose(quick=1, short=2, long=8)):
                async with run.incident("new version", SERVER, is_outage=False):
                    publish(built, versions / str(version))
                    await _serves_only(rest, version)
                    await run.recovered(since=time.monotonic())
                async with run.incident("broken version", SERVER, is_outage=False):
                    broken = versions / str(version + 1)
                    publish(built, broken, graph=b"not a graph" * 100)
                    await _reports_error(rest, version + 1)
                    await run.recovered(since=time.monotonic())
                    shutil.rmtree(broken)
                for port in ("PORT_02_GRPC", "PORT_02_REST"):
                    async with run.incident("garbage", f"{port[8:]} port", is_outage=False) as incident:
                        await garbage(stack.ports[port], connections=100)
                        if port == "PORT_02_REST":
                            await run.send_bad_bodies(rest, "/v1/models/iris:predict", BAD_BODIES, range(400, 500))
                        await run.recovered(since=incident.started)
                async with run.incident("kill -9", SERVER):
                    await kill_and_wait(stack, stack.process(f"02-{SERVER}"))
                    await run.recovered(since=time.monotonic())


async def _send_grpc(run: ChaosRun, stub: Any) -> Violation | None:
    request = messages.PredictRequest(model_spec=messages.ModelSpec(name="iris"))
    tensor = request.inputs["input"]
    tensor.dtype = messages.DT_FLOAT
    for size in (1, len(FLOWER)):
        tensor.tensor_shape.dim.add().size = size
    tensor.float_val.extend(FLOWER)
    try:
        return violation_of((await stub.Predict(request, timeout=DEADLINE_S)).outputs["output"].float_val)
    except grpc.aio.AioRpcError as exc:
        if exc.code() is grpc.StatusCode.UNAVAILABLE:
            return Violation(str(exc.details()), blame=SERVER)
        run.lost += exc.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        return Violation(f"{exc.code().name}: {exc.details()}")


async def _send_rest(run: ChaosRun, rest: httpx.AsyncClient) -> Violation | None:
    body = {"instances": [FLOWER]}
    response = await run.request(rest, "POST", "/v1/models/iris:predict", blame=SERVER, json=body)
    if isinstance(response, Violation):
        return response
    if response.status_code != 200:
        return Violation(f"status {response.status_code}: {response.text[:200]}")
    return violation_of(response.json()["predictions"][0])


def publish(built: Path, version: Path, graph: bytes | None = None) -> None:
    """Add a version atomically, as build_model.py does; with other bytes as its graph, one that no runtime can load."""
    hidden = version.with_name(f".{version.name}")
    shutil.copytree(built, hidden)
    if graph is not None:
        for name in ("saved_model.pb", "model.onnx"):
            (hidden / name).write_bytes(graph)
    hidden.rename(version)


async def _status(rest: httpx.AsyncClient) -> dict[str, tuple[str, str]]:
    status = (await rest.get("/v1/models/iris")).json()["model_version_status"]
    return {each["version"]: (each["state"], each["status"]["error_code"]) for each in status}


async def _serves_only(rest: httpx.AsyncClient, version: int) -> None:
    """Return when this version, and no other, is available."""
    while [number for number, (state, _) in (await _status(rest)).items() if state == "AVAILABLE"] != [str(version)]:
        await asyncio.sleep(0.05)


async def _reports_error(rest: httpx.AsyncClient, version: int) -> None:
    """Return when this version has ended with an error."""
    while (await _status(rest)).get(str(version), ("", "OK"))[1] == "OK":
        await asyncio.sleep(0.05)
