"""A model of the user's own, served as ONNX: requests, results and checks come from its card."""

import asyncio
import math
import shlex
from contextlib import ExitStack, asynccontextmanager

import httpx
import pytest

from serving_common.errors import StartupError
from serving_testing.own_model import CARD, REGRESSION, value_of, write_model
from serving_testing.processes import free_port, running
from src.configurations import ProxySettings, WorkerSettings
from src.proxy.app import create_app as create_proxy
from src.worker.main import create_app as create_worker

ROWS = [[30, "north", 3100.5, True], [18, "south", None, False], [2**40, "north", -1.0, False]]
NAMED = {"is_new": False, "income": None, "region": "south", "age": 18}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The gRPC port of a server of the model `churn`."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    port, rest_port = free_port(), free_port()
    flags = f"--port={port} --rest_api_port={rest_port} --model_name=churn --model_base_path={shlex.quote(str(folder))}"
    ready = f"http://127.0.0.1:{rest_port}/v1/models/churn"
    with ExitStack() as stack:
        stack.enter_context(running(f"model_server {flags}", cwd=folder, env={}, log=folder / "log", ready=ready))
        yield port


@pytest.fixture
def variables(redis_server, served, tmp_path):
    """Settings of proxy and worker for a card."""

    def of(card: str, **overrides) -> dict[str, object]:
        (tmp_path / "model.toml").write_text(card)
        address = {"redis_host": "127.0.0.1", "redis_port": redis_server.port, "tf_serving_host": "127.0.0.1"}
        own = {"tf_serving_grpc_port": served, "model_name": "churn", "model_card": tmp_path}
        return address | own | overrides

    return of


@asynccontextmanager
async def client_of(app):
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service") as client,
    ):
        yield client


@asynccontextmanager
async def system(variables):
    """A client of a proxy beside which a worker runs."""
    async with (
        client_of(create_worker(WorkerSettings.model_validate(variables))),
        client_of(create_proxy(ProxySettings.model_validate(variables))) as proxy,
    ):
        yield proxy


async def result(proxy, data) -> dict[str, object]:
    submitted = await proxy.post("/predict", json={"data": data})
    assert submitted.status_code == 200, submitted.text
    job = await proxy.get(f"/job/{submitted.json()['job_id']}", params={"wait": 20})
    assert job.status_code == 200, job.text
    found: dict[str, object] = job.json()
    return found


async def test_rows_of_mixed_types_are_classified_with_the_labels_of_the_card(redis, variables):
    yes = [1 / (1 + math.exp(-value_of(row))) for row in ROWS]
    probabilities = [pytest.approx([1 - each, each], abs=1e-5) for each in yes]
    async with system(variables(CARD)) as proxy:
        one = (await result(proxy, [ROWS[0]]))["result"]
        several = (await result(proxy, [ROWS[0], NAMED, ROWS[2]]))["result"]

    assert one == {"prediction": 1, "class_name": "churn", "probabilities": probabilities[0]}
    assert several == {"prediction": [1] * 3, "class_name": ["churn"] * 3, "probabilities": probabilities}


async def test_a_regression_has_values_and_one_that_is_not_finite_fails_only_its_job(redis, variables):
    async with system(variables(REGRESSION)) as proxy:
        one, several, infinite, after = await asyncio.gather(
            result(proxy, [ROWS[0]]),
            result(proxy, ROWS),
            result(proxy, [ROWS[0], [0, "north", 1.0, True]]),
            result(proxy, [NAMED]),
        )

    assert one["result"] == {"value": pytest.approx(value_of(ROWS[0]), rel=1e-5)}
    assert several["result"] == {"value": [pytest.approx(value_of(row), rel=1e-5) for row in ROWS]}
    assert (infinite["status"], infinite["error"]) == (
        "failed",
        "Model inference failed: the answer to row 1 is not a finite number",
    )
    assert after["status"] == "completed"


async def test_requests_are_documented_and_validated_by_the_card(redis, variables):
    async with system(variables(CARD)) as proxy:
        document = (await proxy.get("/openapi.json")).json()
        example = document["components"]["schemas"]["PredictRequest"]["properties"]["data"]["examples"][0]
        assert (await result(proxy, example))["status"] == "completed"
        assert (await proxy.post("/predict/test")).status_code == 200
        wrong = await proxy.post("/predict", json={"data": [ROWS[0], [30, "west", 1.0, True]]})
        missing = await proxy.post("/predict", json={"data": [ROWS[0], {"age": 30}]})

    error = {"row": 1, "field": "region", "reason": 'must be one of "north", "south"'}
    assert (wrong.status_code, wrong.json()["errors"]) == (422, [error])
    assert missing.json()["errors"] == [{"row": 1, "field": "region", "reason": "is missing"}]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('dtype = "int64"\nmin = 0', 'dtype = "string"', "age is string in the card"),
        ('labels = ["stay", "churn"]', 'labels = ["a", "b", "c"]', "no output has 3 numbers"),
        ("[sample]", "[sample]\nexpected = [[0.5, 0.5], [0.5, 0.5]]", "row 0 of the sample gives"),
        ('task = "class', 'signature = "other"\ntask = "class', "has the signature other, the model serving_default"),
    ],
)
async def test_a_worker_refuses_to_start_with_the_card_of_another_model(redis, variables, old, new, reason):
    card = CARD.replace(old, new)
    if "string" in new:
        card = card.replace("[[30,", '[["30",').replace("[1,", '["1",')
    app = create_worker(WorkerSettings.model_validate(variables(card)))
    with pytest.raises(StartupError, match=reason) as caught:
        async with app.router.lifespan_context(app):
            pass

    assert "\n" not in str(caught.value)


async def test_a_model_that_is_replaced_by_another_is_reported_and_fails_no_job(redis, redis_server, model):
    model.columns = 4
    variables = {"redis_host": "127.0.0.1", "redis_port": redis_server.port}
    variables |= {"tf_serving_host": "127.0.0.1", "tf_serving_grpc_port": model.port}
    row = [5.1, 3.5, 1.4, 0.2]
    async with (
        client_of(create_worker(WorkerSettings.model_validate(variables))) as worker,
        client_of(create_proxy(ProxySettings.model_validate(variables))) as proxy,
    ):
        assert (await result(proxy, [row]))["status"] == "completed"
        model.columns = 5
        unhealthy, degraded = await worker.get("/health"), await proxy.get("/health")
        submitted = (await proxy.post("/predict", json={"data": [row]})).json()
        waiting = await proxy.get(f"/job/{submitted['job_id']}", params={"wait": 0.5})
        model.columns = 4
        completed = await proxy.get(f"/job/{submitted['job_id']}", params={"wait": 20})
        healthy = await worker.get("/health")

    reason = "iris: the card has 4 inputs, the model has input float[N, 5]"
    assert unhealthy.status_code == 503
    assert unhealthy.json()["reason"].startswith(reason)
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert degraded.json()["reason"].startswith(reason)
    assert waiting.json()["status"] == "pending"
    assert completed.json()["status"] == "completed"
    assert healthy.json() == {"status": "healthy"}
