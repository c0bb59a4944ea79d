"""04: an API that registers rows, and a job that predicts them in batches, both on SQLite."""

import asyncio
import time
from functools import partial

import httpx

from scripts.devstack.load import Work
from scripts.devstack.own_model import answers_of, require_rows, with_card
from scripts.devstack.steps import FLOWERS, Demo, Steps, Urls, send
from scripts.devstack.table import Pattern, ProcessDefinition, web_process
from serving_common.cards import Card, Task

BATCH_WITHIN_S = 60

_MODEL = {
    "MODEL_FILEPATH": "{root}/models/artifacts/iris_svc.onnx",
    "LABEL_FILEPATH": "{root}/models/artifacts/label.json",
}
_DATABASE = {"DATABASE_URL": "sqlite:///{state}/items.db"}

PATTERN = Pattern(
    number="04",
    title="Batch",
    folder="04_batch_pattern",
    artifacts=("iris_svc",),
    published={"PORT_04_API": 8000},
    processes=(
        web_process("api", "src.api.app", "PORT_04_API", 8400, env=_MODEL, defaults=_DATABASE),
        # It runs once and exits; the supervisor's restart makes it periodic.
        ProcessDefinition(
            name="job",
            argv=("python", "-m", "src.task.job"),
            env=_MODEL,
            defaults=_DATABASE | {"JOB_WAIT_SECONDS": "5"},
            depends_on=("04-api",),
        ),
    ),
)

WORK = Work(
    port="PORT_04_API",
    path="/data",
    body={"values": FLOWERS["setosa"]},
    job="/data/{id}",
    state=lambda row: "completed" if row["prediction"] else "pending",
)


async def demo(client: httpx.AsyncClient, urls: Urls) -> Steps:
    """Flowers are registered at once and predicted by the next run of the job."""
    api = urls["PORT_04_API"]
    items = [{"values": row} for row in FLOWERS.values()]
    waiting = {"id": int, "values": list, "prediction": None, "created_datetime": str}

    yield await send(client, "GET", f"{api}/health", want={"status": "ok"})
    yield await send(client, "GET", f"{api}/metadata", want=dict)
    registered = await send(client, "POST", f"{api}/data", items[0], want=waiting)
    yield registered
    yield await send(client, "POST", f"{api}/data/list", {"items": items}, want=[waiting] * 3, is_highlight=True)
    yield await send(client, "GET", f"{api}/data/unpredicted", want=list)
    await _wait_for_job(client, api)
    done = waiting | {"prediction": {"0": float, "1": float, "2": float}}
    yield await send(client, "GET", f"{api}/data/predicted", want=[done] * 4, is_highlight=True)
    yield await send(client, "GET", f"{api}/data/all?limit=1", want=[done])
    if isinstance(registered.answer, dict):
        yield await send(client, "GET", f"{api}/data/{registered.answer['id']}", want=done)
    yield await send(client, "GET", f"{api}/data/failed", want=[])


async def _wait_for_job(client: httpx.AsyncClient, api: str) -> None:
    deadline = time.monotonic() + BATCH_WITHIN_S
    # The job is a process of its own and sends no notification when it is done.
    while (await client.get(f"{api}/data/unpredicted")).json() and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


def own_model(card: Card) -> tuple[Pattern, Demo]:
    """The same with the model of this card."""
    require_rows(card)
    return with_card(PATTERN, card), partial(_demo_of, card)


async def _demo_of(card: Card, client: httpx.AsyncClient, urls: Urls) -> Steps:
    api = urls["PORT_04_API"]
    items = {"items": [{"values": row} for row in card.sample_rows]}
    yield await send(client, "GET", f"{api}/health", want={"status": "ok"})
    yield await send(client, "GET", f"{api}/metadata", want={"name": card.name, "data_names": card.names})
    waiting = [{"id": int, "prediction": None}] * len(card.sample_rows)
    yield await send(client, "POST", f"{api}/data/list", items, want=waiting, is_highlight=True)
    await _wait_for_job(client, api)
    predictions = [
        {"value": answer} if card.task is Task.REGRESSION else {str(i): number for i, number in enumerate(answer)}
        for answer in answers_of(card)
    ]
    done = [{"prediction": each} for each in predictions]
    yield await send(client, "GET", f"{api}/data/predicted", want=done, is_highlight=True)
    yield await send(client, "GET", f"{api}/data/failed", want=[])
