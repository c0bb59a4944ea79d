"""A model of the user's own: everything about its rows and predictions comes from its card."""

import json
import math
import threading

import pytest
from sqlalchemy import text

from serving_common.errors import StartupError
from serving_testing.own_model import CARD, REGRESSION, value_of, write_model
from src.configurations import JobSettings
from src.db import cruds
from src.ml.metadata import read_card, read_metadata
from src.ml.prediction import BatchPredictor
from src.task import job
from tests.conftest import environment_of, read, serving, write
from tests.processes import BatchSystem

ROWS = [[30, "north", 3100.5, True], [18, "south", None, False], [2**40, "north", -1.0, False]]


@pytest.fixture(scope="module", params=["classes", "value"])
def own(request, settings, tmp_path_factory):
    """Settings with the card of a classification or of a regression."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder, CARD if request.param == "classes" else REGRESSION)
    return settings.model_validate({**settings.model_dump(), "model_card": folder})


@pytest.fixture(scope="module")
def own_api(own):
    with serving(own) as client:
        yield client


@pytest.fixture
def api(own_api, database):
    return own_api


def predict(database, own):
    job.run_batch(database, BatchPredictor.load(read_card(own)), JobSettings(), threading.Event())


def wanted(row, own):
    value = value_of(row)
    if own.model_card.output.value:
        return pytest.approx({"value": value}, rel=1e-5)
    return pytest.approx({"0": 1 / (1 + math.exp(value)), "1": 1 / (1 + math.exp(-value))}, abs=1e-5)


def test_rows_of_mixed_types_are_predicted_from_post_to_get(api, database, own):
    assert api.post("/data", json={"values": ROWS[0]}).json()["values"] == ROWS[0]
    named = {"is_new": False, "income": None, "region": "south", "age": 18}
    stored = api.post("/data/list", json=[{"values": named}, {"values": ROWS[2]}])
    assert [item["values"] for item in stored.json()] == ROWS[1:]

    predict(database, own)

    items = api.get("/data/predicted").json()
    assert [item["values"] for item in items] == ROWS
    assert [item["prediction"] for item in items] == [wanted(row, own) for row in ROWS]


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ([30, "west", 1.0, True], {"field": "region", "reason": 'must be one of "north", "south"'}),
        ([30.5, "north", 1.0, True], {"field": "age", "reason": "must be an integer at least 0.0"}),
        ([None, "north", 1.0, True], {"field": "age", "reason": "must be an integer at least 0.0"}),
        ([30, "north", "1", True], {"field": "income", "reason": "must be a number or null"}),
        ([30, "north", 1e39, True], {"field": "income", "reason": "must be a number or null"}),
        ([30, "north", 1.0, 1], {"field": "is_new", "reason": "must be true or false"}),
        ({"age": 30, "region": "north", "income": 1.0}, {"field": "is_new", "reason": "is missing"}),
        ([30, "north", 1.0], {"field": "values"}),
    ],
)
def test_invalid_row_returns_400_with_row_and_column(api, values, error):
    answer = api.post("/data/list", json=[{"values": ROWS[0]}, {"values": values}])
    assert answer.status_code == 400
    assert {"row": 1, **error}.items() <= answer.json()["errors"][0].items()
    assert api.get("/data/all").json() == []


def test_rows_that_do_not_fit_or_have_no_finite_answer_are_marked(api, database, own):
    write(database, json.dumps(ROWS[0]), '[30, "west", 1, true]', '[30, "north", 1]', '[0, "north", 1, true]', "{}")
    predict(database, own)
    reasons = [item.error or "" for item in read(database, cruds.FAILED)]
    assert reasons[0] == 'values[1]: must be one of "north", "south"'
    assert "at least 4 items" in reasons[1]
    if own.model_card.output.value:
        assert reasons[2] == "the model's answer is not a finite number"
    assert len(read(database, cruds.PREDICTED)) + len(reasons) == 5


def test_documented_example_is_accepted_and_metadata_is_that_of_the_card(api, own):
    document = api.get("/openapi.json").json()
    values = document["components"]["schemas"]["ItemBase"]["properties"]["values"]
    assert api.post("/data", json={"values": values["examples"][1]}).status_code == 200
    assert "income in EUR" in values["description"]
    prediction = document["components"]["schemas"]["Item"]["properties"]["prediction"]["description"]
    metadata = api.get("/metadata").json()
    assert metadata["data_names"] == ["age", "region", "income", "is_new"]
    assert metadata["data_sample"] == [[30, "north", 3100.0, True], [1, "south", None, False]]
    assert [each["dtype"] for each in metadata["inputs"]] == ["int64", "string", "float32", "bool"]
    if own.model_card.output.value:
        assert (metadata["labels"], prediction) == ({}, "`value`: price in EUR, once the job has run.")
        assert metadata["outputs"] == [{"name": "price", "dtype": "float32", "shape": ["N"]}]
    else:
        assert metadata["labels"] == {"0": "stay", "1": "churn"}
        assert metadata["outputs"] == [{"name": "probabilities", "dtype": "float32", "shape": ["N", 2]}]


def test_long_strings_are_stored_under_their_own_ids(database, settings, tmp_path):
    card = write_model(tmp_path, CARD.replace('values = ["north", "south"]\n', ""))
    rows = [[30, f"{number}" + "\"'\\é" * 30_000, 1.0, True] for number in range(4)]
    with serving(settings.model_validate({**settings.model_dump(), "model_card": card})) as api:
        stored = api.post("/data/list", json=[{"values": row} for row in rows]).json()
        assert [api.get(f"/data/{item['id']}").json()["values"] for item in stored] == rows
        with database.transaction() as db:
            assert db.scalar(text("SELECT COUNT(*) FROM items")) == 4


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"1/model.onnx"', f'"1/model.onnx"\nsha256 = "{"0" * 64}"', "the card says 000000000000…"),
        ("[sample]", "[sample]\nexpected = [[0.5, 0.5], [0.5, 0.5]]", "the card expects"),
        ('["stay", "churn"]', '["a", "b", "c"]', "no output has 3 numbers"),
        ('dtype = "int64"\nmin = 0', 'dtype = "float32"', "age is float32 in the card"),
    ],
)
def test_card_of_another_model_is_refused(settings, tmp_path, old, new, reason):
    card = CARD.replace(old, new).replace("[30,", "[30.0,") if "float32" in new else CARD.replace(old, new)
    own = settings.model_validate({"model_card": write_model(tmp_path, card)})
    with pytest.raises(StartupError, match=reason):
        BatchPredictor.load(read_card(own))


def test_api_refuses_a_model_of_another_hash(settings, tmp_path):
    card = CARD.replace('"1/model.onnx"', f'"1/model.onnx"\nsha256 = "{"0" * 64}"')
    own = settings.model_validate({"model_card": write_model(tmp_path, card)})
    with pytest.raises(StartupError, match="the card says 000000000000…"):
        read_metadata(read_card(own))


def test_job_ends_with_one_line_if_the_card_is_faulty(models, tmp_path):
    card = write_model(tmp_path, CARD.replace('"bool"', '"boolean"'))
    system = BatchSystem(environment_of(models, f"sqlite:///{tmp_path}/items.db"))
    process = system.job("--no-wait", MODEL_CARD=str(card)).process
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert output.startswith(f"configuration error: MODEL_CARD: Value error, {card}: line 22: inputs.3.dtype")
    assert len(output.splitlines()) == 1
