"""The proxy's endpoints, with Redis and model available, slow or down."""

import asyncio
import io
import itertools
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image
from prometheus_client import generate_latest

from serving_common.errors import StartupError
from serving_common.queue import metrics as queue_metrics
from serving_common.queue.types import JobId
from serving_common.queue.worker import Worker
from serving_testing.processes import free_port
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src import jobs
from src.configurations import ProxySettings, WorkerSettings
from src.jobs import store
from src.ml.classifier import Classifier, ImagePrediction
from src.ml.image_cards import imagenet_card, imagenet_form
from src.ml.preprocessing import preprocess
from src.proxy import predictor as predictors
from src.proxy.app import create_app
from src.proxy.metrics import STAGE_TIME
from tests.conftest import PATTERN, ROOT
from tests.integration.proxy.conftest import body_of, proxy, until

BETTER = ImagePrediction(
    "Siamese cat", [("Siamese cat", 0.75), ("lynx", 0.125), ("tabby", 0.0625), ("tench", 0), ("crane", 0)]
)


@pytest.fixture
async def worker(redis):
    worker = Worker(redis, jobs.keys("queue:jobs"), ttl_s=3600)
    yield worker
    await worker.deregister()


async def submit(client, photo) -> JobId:
    response = await client.post("/predict", json=body_of(photo))
    assert response.status_code == 200, response.text
    return JobId(response.json()["job_id"])


async def test_health_returns_ok(client):
    assert (await client.get("/health")).json() == {"health": "ok"}


async def test_metadata_reports_weights_of_both_models(client, models):
    recorded = json.loads((models / "manifest.json").read_text())["artifacts"]["mobilenet_v2"]["weights"]
    weights = "random" if recorded == "random" else "pretrained"

    assert (await client.get("/metadata")).json() == {
        "data_type": "str",
        "data_structure": "(1,1)",
        "data_sample": "base64 encoded image file",
        "prediction_type": "str",
        "prediction_structure": "(1,1)",
        "prediction_sample": "Persian cat",
        "weights": {"sync": weights, "async": weights},
    }


async def test_predict_returns_sync_label_and_id_of_stored_job(redis, client, photo, models):
    answer = (await client.post("/predict", json=body_of(photo))).json()

    classifier = Classifier.load(imagenet_card(models / "mobilenet_v2.onnx", models / "imagenet_labels.json"))
    assert answer.keys() == {"job_id", "result_sync"}
    assert answer["result_sync"] in classifier.labels
    job_id = answer["job_id"]
    assert len(job_id) == 6
    assert await redis.lrange("queue:jobs", 0, -1) == [job_id.encode()]
    assert await redis.get(f"image:{job_id}") == body_of(photo)["image_data"].encode()
    assert 3500 < await redis.ttl(f"image:{job_id}") <= 3600


async def test_job_result_is_empty_until_completed(redis, client, worker, photo):
    answer = (await client.post("/predict", json=body_of(photo))).json()
    job_id = answer["job_id"]
    assert (await client.get(f"/job/{job_id}")).json() == {job_id: {"prediction": ""}}

    [job] = await worker.claim(1)
    assert jobs.read_image(job.data) == photo
    unfinished = (await client.get(f"/job/{job_id}?detail=true")).json()[job_id]
    assert (unfinished["prediction"], unfinished["top5"]) == ("", [])
    assert unfinished["sync"]["prediction"] == answer["result_sync"]

    await store(redis, worker, [(job.id, BETTER)], 3600)
    assert (await client.get(f"/job/{job_id}")).json() == {job_id: {"prediction": "Siamese cat"}}
    finished = (await client.get(f"/job/{job_id}?detail=true")).json()[job_id]
    assert finished["prediction"] == "Siamese cat"
    assert finished["top5"][0] == {"label": "Siamese cat", "probability": 0.75}
    assert finished["sync"] == unfinished["sync"]
    probabilities = [entry["probability"] for entry in finished["sync"]["top5"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert finished["sync"]["top5"][0]["label"] == answer["result_sync"]


async def test_long_poll_returns_when_job_ends(redis, client, worker, photo):
    job_id = await submit(client, photo)
    polling = asyncio.create_task(client.get(f"/job/{job_id}?wait=30"))
    await until(redis.pubsub_channels)
    await worker.claim(1)
    await store(redis, worker, [(job_id, BETTER)], 3600)

    assert (await polling).json() == {job_id: {"prediction": "Siamese cat"}}


async def test_failed_job_returns_empty_prediction_and_error(client, worker, photo):
    job_id = await submit(client, photo)
    await worker.claim(1)
    await worker.fail(job_id, "Not an image")

    assert (await client.get(f"/job/{job_id}")).json() == {job_id: {"prediction": "", "error": "Not an image"}}
    detail = (await client.get(f"/job/{job_id}?detail=true")).json()[job_id]
    assert (detail["prediction"], detail["error"], detail["top5"]) == ("", "Not an image", [])


@pytest.mark.parametrize("job_id", ["ffffff", "x", "a%2Fb", "%00", "é" * 300, "{}"])
async def test_unknown_job_returns_404(client, job_id):
    response = await client.get(f"/job/{job_id}")

    assert response.status_code == 404


@pytest.mark.parametrize("query", ["wait=-1", "wait=nan", "wait=inf", "wait=x", "detail=perhaps"])
async def test_invalid_query_returns_400(client, query):
    response = await client.get(f"/job/ffffff?{query}")

    assert response.status_code == 400
    assert response.json()["errors"][0]["field"] == query.partition("=")[0]


async def test_int8_precision_uses_quantised_model(settings, int8_model, models, photo):
    int8 = settings(model_precision="int8")
    pixels = preprocess(photo, imagenet_form(int8.resize_mode), max_pixels=int8.max_image_pixels)
    [expected] = Classifier.load(imagenet_card(int8_model, models / "imagenet_labels.json")).classify(
        pixels[np.newaxis]
    )
    async with proxy(int8) as client:
        job_id, label = (await client.get("/predict/test")).json().values()
        assert label == expected.label
        top5 = (await client.get(f"/job/{job_id}?detail=true")).json()[job_id]["sync"]["top5"]
    assert [each["label"] for each in top5] == [label for label, _ in expected.top5]
    assert [each["probability"] for each in top5] == pytest.approx([p for _, p in expected.top5], abs=1e-5)


async def test_predict_test_uses_sample_photo(redis, client, photo):
    answer = (await client.get("/predict/test")).json()

    assert answer["result_sync"] == (await client.post("/predict", json=body_of(photo))).json()["result_sync"]
    assert await redis.exists(f"image:{answer['job_id']}")


async def test_unreadable_image_creates_no_job(redis, client, photo):
    response = await client.post("/predict", json=body_of(photo[:20_000]))

    assert response.status_code == 400
    assert await redis.keys() == []


async def test_redis_down_returns_sync_result_without_job(settings, photo):
    async with proxy(settings(redis_port=free_port())) as client:
        for _ in range(3):
            response = await client.post("/predict", json=body_of(photo))
            assert response.status_code == 200
            assert response.json()["job_id"] is None
            assert response.json()["result_sync"]
        assert (await client.get("/health")).status_code == 200
        response = await client.get("/job/a1b2c3")
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")


def connections(listening: socket.socket) -> int:
    """Close the connections made since the previous call; returns their number."""
    for count in itertools.count():
        try:
            listening.accept()[0].close()
        except BlockingIOError:
            return count
    raise AssertionError


async def test_circuit_breaker_lets_one_request_wait_for_silent_redis(settings, photo, monkeypatch):
    """Redis accepts connections and never replies, as a hung host does."""
    monkeypatch.setattr(queue_metrics, "watch", lambda _: asyncio.Event().wait())  # asks Redis, too, time and again
    monkeypatch.setattr(predictors, "REDIS_COOL_DOWN_S", 3600)  # as long as three predictions take, on any machine
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with proxy(settings(redis_port=server.getsockname()[1], job_timeout_s=0.1)) as client:
            connections(server)  # those of the start-up
            answers = [(await client.post("/predict", json=body_of(photo))).json() for _ in range(3)]

        assert [answer["job_id"] for answer in answers] == [None] * 3
        assert connections(server) == 1  # only the first request tried; then the breaker was open


async def test_circuit_breaker_closes_when_redis_recovers(redis, redis_server, settings, photo):
    async with proxy(settings()) as client:
        await submit(client, photo)
        redis_server.kill()
        assert (await client.post("/predict", json=body_of(photo))).json()["job_id"] is None
        redis_server.start()

        async def has_an_id() -> bool:
            return (await client.post("/predict", json=body_of(photo))).json()["job_id"] is not None

        await until(has_an_id)


async def test_full_queue_returns_sync_result_without_job(redis, settings, photo):
    async with proxy(settings(max_queue_length=1)) as client:
        await submit(client, photo)
        response = await client.post("/predict", json=body_of(photo))
        assert (response.status_code, response.json()["job_id"]) == (200, None)
        await redis.delete("queue:jobs")
        await submit(client, photo)  # a full queue is not a Redis failure: the breaker stayed closed


class HeldClassifier:
    """Wraps a classifier, and blocks until it is released."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.entered = threading.Semaphore(0)
        self.released = threading.Event()

    def classify(self, images, options):
        self.entered.release()
        assert self.released.wait(60)
        return self._classifier.classify(images, options)


@pytest.fixture
async def held(redis, settings, photo):
    """A client, and the held model of its proxy."""
    app = create_app(settings(max_in_flight=2))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://proxy", timeout=60) as client,
    ):
        model = HeldClassifier(app.state.predictor._classifier)
        app.state.predictor._classifier = model
        yield client, model
        model.released.set()


async def test_job_is_enqueued_while_model_runs_off_the_event_loop(redis, held, photo):
    client, model = held
    request = asyncio.create_task(client.post("/predict", json=body_of(photo)))
    assert await asyncio.to_thread(model.entered.acquire, timeout=60)

    await until(lambda: redis.llen("queue:jobs"))
    assert (await client.get("/health")).status_code == 200
    assert not request.done()
    model.released.set()
    job_id = (await request).json()["job_id"]
    assert await redis.lrange("queue:jobs", 0, -1) == [job_id.encode()]


async def test_late_event_loop_is_not_taken_for_a_redis_failure(redis, settings, photo):
    """Between any two turns of the loop passes more time than Redis has to answer."""
    async with proxy(settings(job_timeout_s=0.01)) as client:
        requests = [asyncio.create_task(client.post("/predict", json=body_of(photo))) for _ in range(3)]
        while not all(request.done() for request in requests):
            time.sleep(0.02)  # noqa: ASYNC251 - to be late is the point
            await asyncio.sleep(0)

    job_ids = [request.result().json()["job_id"] for request in requests]
    assert sorted(await redis.lrange("queue:jobs", 0, -1)) == sorted(job_id.encode() for job_id in job_ids)


async def test_clients_that_have_gone_leave_no_work(redis, settings, photo):
    """Their images are not decoded, no job is stored for them, and the next request need not wait for them."""
    app = create_app(settings())
    body = json.dumps(body_of(photo)).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    decoded = STAGE_TIME.labels("read")
    async with app.router.lifespan_context(app), serving(app) as address, AsyncExitStack() as stack:
        predictor = app.state.predictor
        model = predictor._classifier = HeldClassifier(predictor._classifier)
        stack.callback(model.released.set)
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=f"http://127.0.0.1:{address}", timeout=60))
        threads = predictor._threads._max_workers
        held = [asyncio.create_task(client.post("/predict", json=body_of(photo))) for _ in range(threads)]
        for _ in held:
            assert await asyncio.to_thread(model.entered.acquire, timeout=60)
        decoded_before = decoded._sum.get()
        writers = [(await asyncio.open_connection("127.0.0.1", address))[1] for _ in range(20)]
        for writer in writers:
            writer.write(head.encode() + body)

        async def in_flight(count: int) -> bool:
            return bool(predictor._limiter._free == 64 - count)

        await until(lambda: in_flight(threads + 20))
        for writer in writers:
            writer.close()
        await until(lambda: in_flight(threads))
        assert decoded._sum.get() == decoded_before
        model.released.set()
        answers = [*await asyncio.gather(*held), await client.post("/predict", json=body_of(photo))]

    job_ids = [answer.json()["job_id"] for answer in answers]
    assert sorted(await redis.lrange("queue:jobs", 0, -1)) == sorted(job_id.encode() for job_id in job_ids)


@asynccontextmanager
async def serving(app) -> AsyncIterator[int]:
    """A server in this event loop; its port."""
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = asyncio.create_task(server.serve([listener]))
        yield listener.getsockname()[1]
        server.should_exit = True
        await running


async def test_proxy_is_ready_with_and_without_redis(redis, settings):
    async with proxy(settings()) as client:
        assert (await client.get("/health/live")).json() == {"status": "alive"}
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert not any("degraded" in warning for warning in ready.json().get("warnings", []))
    async with proxy(settings(redis_port=free_port())) as client:
        degraded = await client.get("/health/ready")
        assert (degraded.status_code, degraded.json()["status"]) == (200, "ready")
        [warning] = degraded.json()["warnings"]
        assert warning.startswith("degraded, no jobs for the better model: Redis")


async def test_file_over_limit_returns_413_with_its_size(redis, settings, photo):
    async with proxy(settings(max_image_bytes=len(photo) - 1)) as client:
        response = await client.post("/predict", json=body_of(photo))

    assert response.status_code == 413
    assert response.json()["detail"] == f"The image file is larger than {len(photo) - 1:,} bytes"
    assert await redis.keys() == []


async def test_requests_over_concurrency_limit_return_429(held, photo):
    client, model = held
    requests = [asyncio.create_task(client.post("/predict", json=body_of(photo))) for _ in range(3)]
    rejected, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
    model.released.set()

    [response] = [task.result() for task in rejected]
    assert (response.status_code, response.headers["Retry-After"]) == (429, "1")
    assert sorted([(await task).status_code for task in requests]) == [200, 200, 429]


async def test_concurrent_requests_get_their_own_results(redis, client, photo, models):
    """Each image gets its own label and its own job, whichever thread it runs on."""
    classifier = Classifier.load(imagenet_card(models / "mobilenet_v2.onnx", models / "imagenet_labels.json"))
    images = [photo, (await asyncio.to_thread(_flipped, photo))]
    answers = await asyncio.gather(*(client.post("/predict", json=body_of(images[i % 2])) for i in range(20)))

    labels = [response.json()["result_sync"] for response in answers]
    assert set(labels[::2]) == {labels[0]}
    assert set(labels[1::2]) == {labels[1]}
    assert set(labels) <= set(classifier.labels)
    for i, response in enumerate(answers):
        stored = await redis.get(f"image:{response.json()['job_id']}")
        assert stored == body_of(images[i % 2])["image_data"].encode()


def _flipped(photo: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(photo)).rotate(180).save(buffer, "PNG")
    return buffer.getvalue()


async def test_api_key_is_required_when_set(redis, settings, photo):
    async with proxy(settings(api_key="secret")) as client:
        assert (await client.post("/predict", json=body_of(photo))).status_code == 401
        headers = {"X-API-Key": "secret"}
        assert (await client.post("/predict", json=body_of(photo), headers=headers)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/")).status_code == 200


async def test_metrics_cover_requests_stages_and_jobs(redis, client, photo):
    await submit(client, photo)
    await client.post("/predict", json={"image_data": "x"})
    async with asyncio.timeout(20):
        while b"jobs_unfinished 1" not in generate_latest():  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.05)
    text = (await client.get("/metrics")).text

    # KEDA scales the workers on these two.
    assert "\njobs_unfinished 1" in text
    assert "\nqueue_oldest_job_age_seconds " in text

    assert 'request_count_total{method="POST",route="/predict",status="200"}' in text
    assert 'request_count_total{method="POST",route="/predict",status="400"}' in text
    assert 'sync_stage_seconds_count{stage="model"}' in text
    for outcome in ("registered", "queue_full", "redis_away"):  # before the first one, too
        assert f'jobs_registered_total{{outcome="{outcome}"}}' in text


@needs_promtool
async def test_metrics_follow_the_naming_rules(redis, client, photo):
    await submit(client, photo)
    page = (await client.get("/metrics")).text
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[3] / "README.md") == []


async def test_page_content_security_policy_allows_own_origin_only(client):
    page = await client.get("/")
    policy = page.headers["Content-Security-Policy"]

    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "://" not in page.text.replace("http://www.w3.org", "")
    for name, media_type in [("page.js", "javascript"), ("page.css", "css"), ("icon.svg", "svg")]:
        response = await client.get(f"/static/{name}")
        assert (response.status_code, media_type in response.headers["Content-Type"]) == (200, True)
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/none"):
        assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("sync_model_path", "there is no model at"),
        ("labels_path", "there are no labels at"),
        ("sample_image_path", "there is no image at"),
    ],
)
async def test_missing_file_raises_startup_error(settings, tmp_path, setting, reason):
    app = create_app(settings(**{setting: tmp_path / "missing"}))
    with pytest.raises(StartupError, match=reason):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {"SYNC_MODEL_PATH": "/nowhere.onnx", "LABELS_PATH": str(ROOT / "models/imagenet_labels.json")},
            "/nowhere.onnx",
        ),
        (
            {
                "SYNC_MODEL_PATH": "/nowhere.onnx",
                "LABELS_PATH": str(ROOT / "models/imagenet_labels.json"),
                "MODEL_PRECISION": "int8",
            },
            "/nowhere_int8.onnx",
        ),
        ({"MODEL_PRECISION": "int4"}, "MODEL_PRECISION"),
        ({"RESIZE_MODE": "cut"}, "RESIZE_MODE"),
        ({"MAX_IMAGE_PIXELS": "0"}, "MAX_IMAGE_PIXELS"),
        ({"REDIS_PORT": "redis"}, "REDIS_PORT"),
    ],
)
def test_startup_error_is_one_log_line(environment, expected):
    done = subprocess.run(
        [sys.executable, "-m", "src.proxy.app"],
        cwd=PATTERN,
        env={"PORT": str(free_port()), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    [line] = (done.stdout + done.stderr).strip().splitlines()
    assert expected in line


def test_defaults_match_specification():
    proxy_settings, worker_settings = ProxySettings(), WorkerSettings()
    assert (proxy_settings.port, proxy_settings.redis_host, proxy_settings.redis_port) == (8000, "redis", 6379)
    assert str(proxy_settings.sync_model_path) == "/models/mobilenet_v2.onnx"
    assert proxy_settings.queue_name == worker_settings.queue_name == "queue:jobs"
    assert str(worker_settings.async_model_path) == "/models/resnet50.onnx"
    assert worker_settings.num_workers == 2
