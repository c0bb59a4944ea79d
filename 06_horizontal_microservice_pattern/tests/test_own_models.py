"""Models of any task behind the proxy, by configuration and a card only: small synthetic ones, on real sockets."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper

from serving_common.batching import MicroBatcher
from serving_common.errors import StartupError
from serving_common.onnx import FloatArray
from src.configurations import ProxySettings, ServiceSettings
from src.proxy.app import create_app as create_proxy
from src.services.app import create_app as create_service

INPUTS = """
[[inputs]]
name = "width"
unit = "mm"
min = 0.0
max = 100.0

[[inputs]]
name = "height"
min = 0.0

[sample]
rows = [[1.0, 2.0]]
"""
SHAPE = 'name = "shape"\nfile = "model.onnx"\ntask = "classification"\noutput = {labels = ["flat", "square", "tall"]}'
AREA = 'name = "area"\nfile = "model.onnx"\ntask = "regression"\noutput = {value = "area", unit = "mm2"}'
WIDE = 'name = "wide"\nfile = "model.onnx"\ntask = "one-vs-rest"\noutput = {labels = ["wide"]}'
# Each row of weights belongs to one column.
CARDS = {
    "shape": (SHAPE, [[1, 0, -1], [-1, 0, 1]], "Softmax"),
    "area": (AREA, [[2], [3]], "Identity"),
    "wide": (WIDE, [[2, 0], [-2, 0]], "Softmax"),
}
ROW, ROWS = {"data": [[3.0, 2.0]]}, {"data": [[3.0, 2.0], [1, 1]]}


def add_model(folder: Path, name: str) -> Path:
    """Writes the card and the model of this name; its folder."""
    card, weights, last = CARDS[name]
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["rows", "weights"], ["sums"]), helper.make_node(last, ["sums"], ["answer"])]
    constants = [numpy_helper.from_array(np.array(weights, np.float32), "weights")]
    graph = helper.make_graph(
        nodes,
        name,
        [value("rows", TensorProto.FLOAT, ["N", 2])],
        [value("answer", TensorProto.FLOAT, ["N", len(weights[0])])],
        constants,
    )
    (folder / name).mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9),
        folder / name / "model.onnx",
    )
    (folder / name / "model.toml").write_text(card + INPUTS + ("expected = [[8.0]]\n" if name == "area" else ""))
    return folder / name


@asynccontextmanager
async def service(card: Path) -> AsyncIterator[str]:
    """The URL of a service of this card."""
    app = create_service(ServiceSettings.model_validate({"model_card": card}))
    async with app.router.lifespan_context(app):
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
        serving = asyncio.create_task(server.serve([listener]))
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        await serving


@asynccontextmanager
async def proxy(folder: Path, *names: str, card: str | None = None) -> AsyncIterator[httpx.AsyncClient]:
    async with AsyncExitStack() as stack:
        urls = {name: await stack.enter_async_context(service(add_model(folder, name))) for name in names}
        settings = {"services": urls, "service_timeout_s": 30} | ({"model_card": folder / card} if card else {})
        app = create_proxy(ProxySettings.model_validate(settings))
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        yield await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://p"))


@asynccontextmanager
async def direct_service(folder: Path, name: str) -> AsyncIterator[httpx.AsyncClient]:
    app = create_service(ServiceSettings.model_validate({"model_card": add_model(folder, name)}))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as client:
        yield client


async def test_each_service_answers_in_its_own_form(tmp_path):
    async with proxy(tmp_path, "shape", "area", "wide", card="shape") as client:
        one, several = [(await client.post("/predict", json=body)).json() for body in (ROW, ROWS)]
        tests = [
            (await client.request(*call)).json()
            for call in (("GET", "/predict/get/test"), ("POST", "/predict/post/test"))
        ]

    assert one["shape"] == {
        "prediction": pytest.approx([0.665241, 0.244728, 0.090031], abs=1e-5),
        "labels": ["flat", "square", "tall"],
    }
    assert one["area"] == {"prediction": {"value": 12}}
    assert one["wide"] == {"prediction": pytest.approx([0.880797, 0.119203], abs=1e-5)}
    assert several["area"] == {"prediction": [{"value": 12}, {"value": 5}]}
    assert [len(row) for row in several["shape"]["prediction"]] == [3, 3]
    assert tests[0] == tests[1]
    assert tests[0]["area"] == {"prediction": {"value": 8}}


async def test_label_is_the_most_probable_class_of_any_service(tmp_path):
    async with proxy(tmp_path, "shape", "area", "wide", card="shape") as client:
        answer = (await client.post("/predict/label", json={"data": [[3.0, 2.0], [1, 9]]})).json()

    assert answer == {
        "prediction": {"proba": pytest.approx([0.880797, 1], abs=1e-3), "label": ["wide", "tall"]},
        "without_probabilities": ["area"],
    }


async def test_label_of_a_regression_is_422_and_says_why(tmp_path):
    async with proxy(tmp_path, "area") as client:
        response = await client.post("/predict/label", json=ROW)

    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "area", "reason": "answers with a value, not with probabilities"}]


@pytest.mark.parametrize("path", ["/predict", "/predict/label"])
@pytest.mark.parametrize("card", ["shape", None], ids=["proxy has the card", "proxy has no card"])
async def test_named_rows_and_their_errors_are_those_of_lists(tmp_path, path, card):
    named = {"height": 2.0, "width": 3.0, "unknown": 1}
    async with proxy(tmp_path, "shape", card=card) as client:
        by_name, mixed, in_order = [
            await client.post(path, json={"data": rows})
            for rows in ([named], [[1.0, 1.0], named], [[1.0, 1.0], [3.0, 2.0]])
        ]
        alone = await client.post(path, json=ROW)
        wrong = await client.post(path, json={"data": [[1.0, 1.0], {"height": 2.0, "width": 300}]})
        missing = await client.post(path, json={"data": [{"height": 2.0}]})

    assert by_name.json() == alone.json()
    assert mixed.json() == in_order.json()
    reason = "must be a number at least 0.0 and at most 100.0"
    assert (wrong.status_code, missing.status_code) == (422, 422)
    assert wrong.json()["errors"] == [{"row": 1, "field": "width", "reason": reason}]
    assert missing.json()["errors"] == [{"row": 0, "field": "width", "reason": "is missing"}]


async def test_proxy_without_a_card_shows_the_metadata_of_each_service(tmp_path):
    async with proxy(tmp_path, "shape", "area") as client:
        answer = (await client.get("/metadata")).json()

    assert answer["services"] == ["shape", "area"]
    assert answer["metadata"]["area"] == {
        "data_type": "float32",
        "data_structure": "(N,2)",
        "data_sample": [[1.0, 2.0]],
        "data_names": ["width", "height"],
        "prediction_type": "float32",
        "prediction_structure": "(N,1)",
        "prediction_sample": {"value": 8},
        "services": ["area"],
        "value": "area",
        "unit": "mm2",
    }
    assert answer["metadata"]["shape"]["labels"] == ["flat", "square", "tall"]


@pytest.mark.parametrize("name", list(CARDS))
async def test_openapi_example_works_when_pasted_and_answers_match_its_schema(tmp_path, name):
    async with direct_service(tmp_path, name) as client:
        document = (await client.get("/openapi.json")).json()
        schemas = document["components"]["schemas"]
        [example] = schemas["PredictRequest"]["properties"]["data"]["examples"]
        response = await client.post("/predict", json={"data": example})

    assert response.status_code == 200
    assert response.json().keys() == schemas["Prediction"]["properties"].keys()
    columns = schemas["PredictRequest"]["properties"]["data"]["items"]["prefixItems"]
    assert [column["title"] for column in columns] == ["width in mm", "height"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
async def test_number_that_is_not_finite_is_the_services_error_with_the_row(tmp_path, bad):
    async with direct_service(tmp_path, "area") as client:
        state = client._transport.app.state  # type: ignore[attr-defined]
        async with MicroBatcher(lambda batch, _=None: np.array([[1.0], [bad]], np.float32)[: len(batch)]) as batcher:
            state.predictor = type(state.predictor)(state.predictor.model, batcher)
            response = await client.post("/predict", json=ROWS)

    assert response.status_code == 503
    assert response.json()["errors"] == [{"row": 1, "field": "prediction", "reason": "is not a finite number"}]


async def test_model_that_fails_on_a_row_is_unavailable(tmp_path):
    def fails(_batch: object, _options: object = None) -> FloatArray:
        raise RuntimeError("unknown category\nwith a trace")

    async with direct_service(tmp_path, "area") as client:
        state = client._transport.app.state  # type: ignore[attr-defined]
        async with MicroBatcher(fails) as batcher:
            state.predictor = type(state.predictor)(state.predictor.model, batcher)
            response = await client.post("/predict", json=ROW)

    assert response.status_code == 503
    assert response.json()["detail"] == "The model failed on these rows: unknown category"


async def test_card_of_another_model_stops_the_start(tmp_path):
    folder = add_model(tmp_path, "area")
    (folder / "model.toml").write_text(SHAPE + INPUTS)

    with pytest.raises(StartupError, match="no output has 3 numbers"):
        async with service(folder):
            pass


def test_service_is_named_after_its_card_unless_it_has_a_name(tmp_path):
    folder = add_model(tmp_path, "area")

    assert ServiceSettings.model_validate({"model_card": folder}).name == "area"
    assert ServiceSettings.model_validate({"model_card": folder, "service_name": "mine"}).name == "mine"
    assert json.dumps(ServiceSettings().card.labels) == '["setosa"]'
