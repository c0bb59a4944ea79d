"""One service, in process, with its real model."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI

from serving_common.batching import MicroBatcher
from serving_common.errors import StartupError
from serving_common.onnx import FloatArray, RunOptions
from serving_testing.promtool import naming_problems, needs_promtool
from src.configurations import ServiceSettings
from src.ml.predictor import Predictor
from src.services.app import create_app

SETOSA = [5.1, 3.5, 1.4, 0.2]
VIRGINICA = [6.3, 3.3, 6.0, 2.5]


@asynccontextmanager
async def service(**settings: object) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(ServiceSettings.model_validate(settings))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        yield client


@pytest.fixture
async def client(models: Path) -> AsyncIterator[httpx.AsyncClient]:
    async with service(model_filepath=models / "iris_svc_0_setosa.onnx") as client:
        yield client


def replace_batcher(app: FastAPI, batcher: MicroBatcher) -> None:
    app.state.predictor = Predictor(app.state.predictor.model, batcher)


async def test_health(client):
    assert (await client.get("/health")).json() == {"health": "ok"}


async def test_metadata_describes_input_and_output(client):
    metadata = (await client.get("/metadata")).json()

    assert metadata["data_sample"] == [SETOSA]
    assert metadata["data_names"] == ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    assert metadata["prediction_structure"] == "(N,2)"
    assert metadata["services"] == ["setosa"]


async def test_one_row_returns_one_pair(client):
    [yes, no] = (await client.post("/predict", json={"data": [SETOSA]})).json()["prediction"]

    assert yes > 0.9
    assert yes + no == pytest.approx(1, abs=1e-6)


@needs_promtool
async def test_metrics_follow_the_naming_rules(client):
    await client.post("/predict", json={"data": [SETOSA]})
    assert naming_problems((await client.get("/metrics")).text) == []


async def test_several_rows_return_a_list_of_pairs(client):
    [[setosa, _], [virginica, _]] = (await client.post("/predict", json={"data": [SETOSA, VIRGINICA]})).json()[
        "prediction"
    ]

    assert setosa > 0.9
    assert virginica < 0.1


async def test_predict_test_uses_a_setosa(client):
    answer = await client.get("/predict/test")

    assert answer.json() == (await client.post("/predict", json={"data": [SETOSA]})).json()


async def test_predictions_keep_the_order_of_rows(client):
    rows = np.random.default_rng(0).uniform(0.1, 9.9, (2000, 4)).round(1).tolist()

    together = (await client.post("/predict", json={"data": rows})).json()["prediction"]
    alone = [(await client.post("/predict", json={"data": [row]})).json()["prediction"] for row in rows[:20]]

    np.testing.assert_allclose(together[:20], alone, atol=1e-6)


async def test_missing_model_fails_startup(tmp_path):
    with pytest.raises(StartupError, match="there is no model"):
        async with service(model_filepath=tmp_path / "none.onnx"):
            pass


async def test_wrong_model_fails_startup(models):
    wrong = models / "iris_svc.onnx"
    if not wrong.exists():
        wrong = models / "label.json"
    with pytest.raises(StartupError):
        async with service(model_filepath=wrong):
            pass


async def test_event_loop_is_free_while_the_model_runs(client):
    """If the model ran on the event loop, /health would not answer."""
    entered, released = threading.Event(), threading.Event()

    def held(batch: FloatArray, _: object = None) -> FloatArray:
        entered.set()
        assert released.wait(10)
        return np.full((len(batch), 2), 0.5, np.float32)

    async with MicroBatcher(held) as batcher:
        replace_batcher(client._transport.app, batcher)
        pending = asyncio.create_task(client.post("/predict", json={"data": [SETOSA]}))
        assert await asyncio.to_thread(entered.wait, 10)
        try:
            assert (await client.get("/health")).status_code == 200
            assert not pending.done()
        finally:
            released.set()
        assert (await pending).json() == {"prediction": [0.5, 0.5]}


@pytest.mark.parametrize(
    ("output", "status", "prediction"),
    [
        pytest.param([1.0000001, -1e-7], 200, [1, 0], id="rounding"),
        pytest.param([1.5, -0.5], 503, None, id="not a probability"),
        pytest.param([float("nan"), 0], 503, None, id="NaN"),
    ],
)
@pytest.mark.parametrize("rows", [1, 2])
async def test_output_at_the_edge_of_0_to_1(client, output, status, prediction, rows):
    async with MicroBatcher(lambda batch, _=None: np.array([output] * len(batch), np.float32)) as batcher:
        replace_batcher(client._transport.app, batcher)
        response = await client.post("/predict", json={"data": [SETOSA] * rows})

    assert response.status_code == status
    if status == 200:
        assert response.json() == {"prediction": prediction if rows == 1 else [prediction] * rows}
    else:
        assert response.json()["detail"] == "The model returned numbers that are not probabilities"


class HeldBatcher(MicroBatcher):
    """Its model waits to be released, or to be ended.

    `runs` has the number of rows of each run, `ended` of those that were ended, `calls` the number of requests.
    """

    def __init__(self) -> None:
        super().__init__(self._held)
        self.entered, self.released = threading.Event(), threading.Event()
        self.runs: list[int] = []
        self.ended: list[int] = []
        self.calls = 0

    def _held(self, batch: FloatArray, options: RunOptions | None = None) -> FloatArray:
        self.runs.append(len(batch))
        self.entered.set()
        deadline = time.monotonic() + 30
        while not self.released.wait(0.01):
            assert time.monotonic() < deadline
            if options is not None and options.terminate:
                self.ended.append(len(batch))
                raise RuntimeError("terminated")
        return np.full((len(batch), 2), 0.5, np.float32)

    async def predict(self, batch: FloatArray, is_wanted: Callable[[], bool] = lambda: True) -> FloatArray:
        self.calls += 1
        return await super().predict(batch, is_wanted)


async def test_expired_request_does_not_run(client):
    async with HeldBatcher() as batcher:
        batcher.released.set()
        replace_batcher(client._transport.app, batcher)
        statuses = [
            (await client.get("/predict/test", headers={"X-Request-Timeout-Ms": timeout_ms})).status_code
            for timeout_ms in ("0", "60000", "-1", "1e3", "9" * 99)
        ]

    assert statuses == [503, 200, 200, 200, 200]
    assert batcher.runs == [1] * 4


async def test_run_ends_at_the_deadline_of_its_request(client):
    async with HeldBatcher() as batcher:
        replace_batcher(client._transport.app, batcher)
        response = await client.get("/predict/test", headers={"X-Request-Timeout-Ms": "100"})

    assert response.status_code == 503
    assert response.json()["detail"].startswith("The caller had gone, or its deadline passed")
    assert batcher.ended == [1]


@pytest.mark.parametrize("path", ["POST /predict", "GET /predict/test"])
async def test_request_whose_caller_has_gone_does_not_run(client, path):
    app = client._transport.app
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    serving = asyncio.create_task(server.serve([listener]))
    body = b'{"data":[[5,3,1,1],[5,3,1,1]]}'
    head = f"{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"

    async def send() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(head.encode() + body)
        return reader, writer

    async def until(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.01)

    async with HeldBatcher() as batcher:
        replace_batcher(app, batcher)
        first = await send()
        assert await asyncio.to_thread(batcher.entered.wait, 30)
        gone, kept = await send(), await send()
        await until(lambda: batcher.calls == 3)
        gone[1].close()
        await until(lambda: len(server.server_state.connections) == 2)
        batcher.released.set()
        for reader, writer in (first, kept):
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            writer.close()
        assert len(batcher.runs) == 2
        assert batcher.runs[0] == batcher.runs[1]  # one request each

        batcher.entered.clear()
        batcher.released.clear()
        running = await send()
        assert await asyncio.to_thread(batcher.entered.wait, 30)
        assert not batcher.ended
        running[1].close()
        await until(lambda: batcher.ended == batcher.runs[2:])
        server.should_exit = True
        await serving


async def test_api_key_is_required_for_predictions_but_not_for_health(models):
    async with service(model_filepath=models / "iris_svc_0_setosa.onnx", api_key="secret") as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/predict/test")).status_code == 401
        assert (await client.get("/predict/test", headers={"X-API-Key": "secret"})).status_code == 200
