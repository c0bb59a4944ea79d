"""07: a proxy that answers with a fast model and queues the image, Redis, and a worker with the better model."""

import base64
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from scripts.devstack.load import Work
from scripts.devstack.own_model import ModelError, with_card
from scripts.devstack.steps import Demo, Step, Steps, Urls, send
from scripts.devstack.table import ROOT, Pattern, redis_process, web_process
from serving_common.cards import Card

PHOTOGRAPH = ROOT / "models/artifacts/sample.jpg"
ANSWER = {"job_id": str, "result_sync": str}  # to an image
_ENV = {
    "REDIS_HOST": "127.0.0.1",
    "REDIS_PORT": "{PORT_07_REDIS}",
    "SYNC_MODEL_PATH": "{root}/models/artifacts/mobilenet_v2.onnx",
    "ASYNC_MODEL_PATH": "{root}/models/artifacts/resnet50.onnx",
    "LABELS_PATH": "{root}/models/artifacts/imagenet_labels.json",
    "SAMPLE_IMAGE_PATH": "{root}/models/artifacts/sample.jpg",
}

PATTERN = Pattern(
    number="07",
    title="Sync-async",
    folder="07_sync_async_pattern",
    artifacts=("mobilenet_v2", "resnet50"),
    published={"PORT_07_PROXY": 8000},
    vary=frozenset({"result_sync", "prediction", "label", "probability", "weights"}),
    files={"photo.jpg": "models/artifacts/sample.jpg"},
    processes=(
        redis_process("PORT_07_REDIS", 6307),
        web_process("proxy", "src.proxy.app", "PORT_07_PROXY", 8700, env=_ENV, depends_on=("07-redis",)),
        web_process(
            *("worker", "src.worker.main", "PORT_07_WORKER", 9107),
            env=_ENV,
            depends_on=("07-redis",),
            ready_within_s=60,  # two processes that load 100 MB each, at a low priority
        ),
    ),
)


def _state(job: Mapping[str, Mapping[str, Any]]) -> str:
    (entry,) = job.values()
    return "failed" if "error" in entry else "completed" if entry["prediction"] else "pending"


WORK = Work(
    port="PORT_07_PROXY",
    method="GET",
    path="/predict/test",
    job="/job/{job_id}",
    state=_state,
    stored="result:{}",
)


def request_body(image: bytes) -> dict[str, str]:
    """Of POST /predict, with this image."""
    return {"image_data": base64.b64encode(image).decode()}


def photograph_body() -> dict[str, str]:
    """The same with the sample photograph, which comes with the models: not before they have been built."""
    return request_body(PHOTOGRAPH.read_bytes())


def _post(client: httpx.AsyncClient, proxy: str, image: Path, what: str) -> Awaitable[Step]:
    content = image.read_bytes()
    shown = {"image_data": f"<{len(content):,} bytes of an image, {what}, in Base64>"}
    return send(client, "POST", f"{proxy}/predict", request_body(content), want=ANSWER, shown=shown, is_highlight=True)


async def demo(client: httpx.AsyncClient, urls: Urls) -> Steps:
    """The fast model's answer about a photograph at once, the better model's a moment later."""
    proxy = urls["PORT_07_PROXY"]
    weights = {"sync": str, "async": str}  # "random": nothing was downloaded, and the labels mean nothing

    yield await send(client, "GET", f"{proxy}/health", want={"health": "ok"})
    yield await send(client, "GET", f"{proxy}/metadata", want={"data_type": "str", "weights": weights})
    posted = await _post(client, proxy, PHOTOGRAPH, "a palace")
    yield posted
    if isinstance(posted.answer, dict):
        job_id = posted.answer["job_id"]
        job = f"{proxy}/job/{job_id}"
        yield await send(client, "GET", job, want={job_id: {"prediction": str}})
        five = [{"label": str, "probability": float}] * 5
        both = {"prediction": str, "top5": five, "sync": {"prediction": posted.answer["result_sync"], "top5": five}}
        done = await send(client, "GET", f"{job}?wait=30&detail=true", want={job_id: both})
        yield done
        if isinstance(done.answer, dict):
            best = done.answer[job_id]["prediction"]
            yield await send(client, "GET", job, want={job_id: {"prediction": best}}, is_highlight=True)
    yield await send(client, "GET", f"{proxy}/predict/test", want=ANSWER)
    no_image = {"image_data": "aGVsbG8="}
    yield await send(client, "POST", f"{proxy}/predict", no_image, want={"detail": str, "errors": [dict]}, status=400)
    yield await send(client, "GET", f"{proxy}/job/000000", want={"detail": "Job not found"}, status=404)


def own_model(card: Card) -> tuple[Pattern, Demo]:
    """The same with the model of this card as the fast and as the better one, unless the environment names another."""
    if card.image is None:
        raise ModelError(f"takes images, and {card.name} rows")
    pattern = with_card(PATTERN, card, "SYNC_MODEL_CARD", "ASYNC_MODEL_CARD")
    return replace(pattern, artifacts=("imagenet_labels", "sample_image")), partial(_demo_of, card)


async def _demo_of(card: Card, client: httpx.AsyncClient, urls: Urls) -> Steps:
    proxy = urls["PORT_07_PROXY"]
    image = card.folder / card.sample.rows[0][0] if card.sample else PHOTOGRAPH
    posted = await _post(client, proxy, image, f"the sample of {card.name}")
    yield posted
    if isinstance(posted.answer, dict):
        job_id = posted.answer["job_id"]
        job = f"{proxy}/job/{job_id}?wait=30&detail=true"
        yield await send(client, "GET", job, want={job_id: {"prediction": str}}, is_highlight=True)
