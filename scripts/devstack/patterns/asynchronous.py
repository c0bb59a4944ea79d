"""03: Redis, a proxy that queues jobs, and a worker that calls 02's model server."""

from functools import partial

import httpx

from scripts.devstack.load import Work
from scripts.devstack.own_model import answers_of, require_rows, require_served_folder, with_card
from scripts.devstack.steps import FLOWERS, Demo, Steps, Urls, send
from scripts.devstack.table import Pattern, redis_process, web_process
from serving_common.cards import Card, Task

_QUEUE = {
    "REDIS_HOST": "127.0.0.1",
    "REDIS_PORT": "{PORT_03_REDIS}",
    "TF_SERVING_HOST": "127.0.0.1",
    "TF_SERVING_GRPC_PORT": "{PORT_02_GRPC}",
}
_BEFORE = ("03-redis", "02-model_server")

PATTERN = Pattern(
    number="03",
    title="Asynchronous",
    folder="03_asynchronous_pattern",
    artifacts=("iris_saved_model",),
    published={"PORT_03_PROXY": 8000},
    processes=(
        redis_process("PORT_03_REDIS", 6303),
        web_process("proxy", "src.proxy.app", "PORT_03_PROXY", 8300, env=_QUEUE, depends_on=_BEFORE),
        web_process("worker", "src.worker.main", "PORT_03_WORKER", 9103, env=_QUEUE, depends_on=_BEFORE),
    ),
)

WORK = Work(
    port="PORT_03_PROXY",
    path="/predict",
    body={"data": [FLOWERS["setosa"]]},
    job="/job/{job_id}",
    state=lambda job: job["status"],
    stored="job:{}:result",
)


def own_model(card: Card) -> tuple[Pattern, Demo]:
    """The same with the model of this card, which the model server has under the name of the other."""
    require_rows(card)
    require_served_folder(card)
    return with_card(PATTERN, card), partial(_demo_of, card)


async def _demo_of(card: Card, client: httpx.AsyncClient, urls: Urls) -> Steps:
    proxy = urls["PORT_03_PROXY"]
    yield await send(client, "GET", f"{proxy}/health", want={"status": "healthy"})
    body = {"data": card.sample_rows}
    queued = await send(client, "POST", f"{proxy}/predict", body, want={"job_id": str}, is_highlight=True)
    yield queued
    if isinstance(queued.answer, dict):
        job = f"{proxy}/job/{queued.answer['job_id']}?wait=10"
        answers = answers_of(card)
        key = "value" if card.task is Task.REGRESSION else "probabilities"
        result = {key: answers[0] if len(answers) == 1 else answers}
        yield await send(client, "GET", job, want={"status": "completed", "result": result}, is_highlight=True)
    yield await send(client, "POST", f"{proxy}/predict/test", want={"job_id": str})


async def demo(client: httpx.AsyncClient, urls: Urls) -> Steps:
    """A job's id at once, its result once a worker has called the model server."""
    proxy = urls["PORT_03_PROXY"]
    well = {"status": "healthy", "components": {"redis": "ok", "tensorflow_serving": "ok"}}

    yield await send(client, "GET", f"{proxy}/health", want=well)
    yield await send(client, "GET", f"{proxy}/metadata", want={"model_spec": {"name": "iris", "version": "1"}})
    for label, row in FLOWERS.items():
        body = {"data": [row]}
        queued = await send(client, "POST", f"{proxy}/predict", body, want={"job_id": str}, is_highlight=True)
        yield queued
        if isinstance(queued.answer, dict):
            job = f"{proxy}/job/{queued.answer['job_id']}?wait=10"
            result = {"prediction": int, "class_name": label, "probabilities": [float, float, float]}
            yield await send(client, "GET", job, want={"status": "completed", "result": result}, is_highlight=True)
    yield await send(client, "POST", f"{proxy}/predict/test", want={"job_id": str})
    yield await send(client, "GET", f"{proxy}/jobs?limit=2", want={"jobs": [dict, dict]})
    yield await send(client, "GET", f"{proxy}/job/000000", want={"detail": "Job not found"}, status=404)
