"""02: the portable model server."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import Any

import httpx

from scripts.devstack.load import Work
from scripts.devstack.own_model import answers_of, folder_of, require_rows, require_served_folder
from scripts.devstack.steps import FLOWERS, Demo, Step, Steps, Urls, mismatch, send
from scripts.devstack.table import ROOT, Pattern, ProcessDefinition
from serving_common.cards import Card, Task, Tensor, bind

PORTS = {"PORT_02_GRPC": 8500, "PORT_02_REST": 8501}

PATTERN = Pattern(
    number="02",
    title="Synchronous",
    folder="02_synchronous_pattern",
    artifacts=("iris_saved_model",),
    published=PORTS,
    processes=(
        ProcessDefinition(
            name="model_server",
            argv=(
                *("python", "-m", "model_server", "--port={PORT_02_GRPC}", "--rest_api_port={PORT_02_REST}"),
                *("--model_name=iris", "--model_base_path={root}/models/artifacts/saved_model/iris"),
                "--monitoring_config_file={root}/02_synchronous_pattern/monitoring.config",
            ),
            ports=PORTS,
            ready="http://127.0.0.1:{PORT_02_REST}/v1/models/iris",
            metrics="http://127.0.0.1:{PORT_02_REST}/monitoring/prometheus/metrics",
        ),
    ),
)

WORK = Work(port="PORT_02_REST", path="/v1/models/iris:predict", body={"instances": [FLOWERS["setosa"]]})


async def demo(client: httpx.AsyncClient, urls: Urls) -> Steps:
    """The model server answers at once, over REST and over gRPC; then through its two clients."""
    model = f"{urls['PORT_02_REST']}/v1/models/iris"
    rows = list(FLOWERS.values())
    available = {"model_version_status": [{"version": "1", "state": "AVAILABLE", "status": dict}]}
    three = [[float, float, float]] * 3

    yield await send(client, "GET", model, want=available)
    yield await send(client, "GET", f"{model}/metadata", want={"model_spec": dict, "metadata": dict})
    yield await send(client, "POST", f"{model}:predict", {"instances": rows}, want={"predictions": three})
    by_name = {"inputs": {"input": rows}}
    yield await send(client, "POST", f"{model}/versions/1:predict", by_name, want={"outputs": three})
    for name, address in (("rest", urls["PORT_02_REST"]), ("grpc", urls["PORT_02_GRPC"].replace("http", "grpc"))):
        yield await _send_with_client(f"client.{name}_client", address, rows)


async def _send_with_client(module: str, address: str, rows: list[list[float]]) -> Step:
    """The same rows, sent by one of the pattern's clients as a process of its own."""
    words = [str(number) for row in rows for number in row]
    command = [sys.executable, "-m", module, *words, "--json", "--address", address.removeprefix("grpc://")]
    started = time.perf_counter()
    done = await asyncio.to_thread(
        subprocess.run, command, cwd=ROOT / PATTERN.folder, capture_output=True, text=True, check=False
    )
    answer = [json.loads(line) for line in done.stdout.splitlines()]
    labels = [{"input": list, "label": label, "probabilities": list} for label in FLOWERS]
    return Step(
        method="RUN",
        url=httpx.URL(address),
        sent=f"python -m {module} {' '.join(words)}",
        answer=answer,
        status=done.returncode,
        latency_ms=1000 * (time.perf_counter() - started),
        problem=mismatch(labels, answer) if done.returncode == 0 else done.stderr.strip(),
        is_highlight=True,
    )


def own_model(card: Card) -> tuple[Pattern, Demo]:
    """The same with the model of this card, under the name of the other."""
    require_rows(card)
    require_served_folder(card)
    server = PATTERN.process("model_server")
    argv = [
        f"--model_base_path={folder_of(card)}" if each.startswith("--model_base_path") else each for each in server.argv
    ]
    return replace(PATTERN.with_changes("model_server", argv=tuple(argv)), artifacts=()), partial(_demo_of, card)


async def _demo_of(card: Card, client: httpx.AsyncClient, urls: Urls) -> Steps:
    model = f"{urls['PORT_02_REST']}/v1/models/iris"
    signatures = {"metadata": {"signature_def": {"signature_def": {card.signature: dict}}}}
    yield await send(client, "GET", model, want={"model_version_status": [{"state": "AVAILABLE"}]})
    described = await send(client, "GET", f"{model}/metadata", want=signatures)
    yield described
    if described.problem or not isinstance(described.answer, dict):
        return
    signature = described.answer["metadata"]["signature_def"]["signature_def"][card.signature]
    binding = bind(card, _tensors(signature["inputs"]), _tensors(signature["outputs"]))
    # JSON has no number for null.
    rows = [number for number, row in enumerate(card.sample_rows) if None not in row]
    columns = {
        part.tensor.name: [[card.sample_rows[row][column] for column in part.columns] for row in rows]
        for part in binding.parts
    }
    answers = [[each] if card.task is Task.REGRESSION else each for each in answers_of(card)]
    wanted: object = [answers[row] for row in rows]
    if len(signature["outputs"]) > 1:
        wanted = {binding.output.name: wanted}
    body = {"signature_name": card.signature, "inputs": columns}
    yield await send(client, "POST", f"{model}:predict", body, want={"outputs": wanted}, is_highlight=True)


def _tensors(signature: dict[str, Any]) -> list[Tensor]:
    """Inputs or outputs of a signature, as GET /metadata describes them, for comparison with a card."""
    names = {"DT_FLOAT": "float", "DT_DOUBLE": "double"}
    return [
        Tensor(
            name,
            names.get(each["dtype"], each["dtype"].removeprefix("DT_").lower()),
            tuple(int(dim["size"]) if int(dim["size"]) >= 0 else None for dim in each["tensor_shape"]["dim"]),
        )
        for name, each in sorted(signature.items())
    ]
