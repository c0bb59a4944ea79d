import math
from pathlib import Path

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError, create_model

from serving_common import cards
from serving_common.cards import Tensor, bind
from serving_common.errors import StartupError
from serving_common.problems import _field_error
from serving_common.settings import Settings
from serving_common.settings import load as load_settings
from tests import iris

ROOT = Path(__file__).parents[4]
CHURN = """name = "churn"
file = "churn.onnx"
task = "classification"

[[inputs]]
name = "region"
dtype = "string"
values = ["north", "south"]

[[inputs]]
name = "income"
unit = "EUR"
min = 0.0
max = 9e5
nullable = true

[[inputs]]
name = "age"
dtype = "int64"
above = 17
below = 121

[[inputs]]
name = "is_new"
dtype = "bool"

[output]
labels = ["stay", "churn"]

[sample]
rows = [["north", 3100.0, 30, true], ["south", nan, 18, false]]
expected = [[0.81, 0.19], [0.5, 0.5]]
"""


def load(folder: Path, text: str = CHURN) -> cards.Card:
    (folder / "model.toml").write_text(text, encoding="utf-8")
    return cards.load(folder)


def test_committed_json_schema_is_current():
    assert (ROOT / "docs/model-card.schema.json").read_text() == cards.json_schema()


def test_default_card_validates_and_documents_rows_as_the_specified_ones():
    card = cards.default_card()

    assert card.validator.json_schema() == TypeAdapter(iris.Rows).json_schema()
    assert card.sample_rows == iris.SAMPLE
    assert card.inputs[0].rule == "must be a number greater than 0.0 and less than 10.0"


def test_default_card_takes_name_file_and_labels_of_the_specified_variables(tmp_path):
    card = cards.default_card(tmp_path / "mine.onnx", ["a", "b"])

    assert (card.name, card.model_file, card.labels) == ("mine", tmp_path / "mine.onnx", ["a", "b"])


def test_rows_are_lists_or_named_values(tmp_path):
    card = load(tmp_path)
    named = {"is_new": True, "age": 18, "income": None, "region": "south", "unknown": 1}

    rows = card.validator.validate_python([["north", 1, 120, False], named])

    assert [list(row) for row in rows] == [["north", 1, 120, False], ["south", None, 18, True]]
    assert card.sample_rows[1] == ["south", None, 18, False]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        pytest.param("region", "west", 'must be one of "north", "south"', id="value that is not allowed"),
        pytest.param("region", 1, 'must be one of "north", "south"', id="number for a string"),
        pytest.param("income", -0.1, "must be a number at least 0.0 and at most 900000.0 or null", id="below min"),
        pytest.param("income", True, "must be a number at least 0.0 and at most 900000.0 or null", id="boolean"),
        pytest.param("income", math.inf, "must be a number at least 0.0 and at most 900000.0 or null", id="infinite"),
        pytest.param("age", 17, "must be an integer greater than 17.0 and less than 121.0", id="exclusive bound"),
        pytest.param("age", 30.0, "must be an integer greater than 17.0 and less than 121.0", id="float for integer"),
        pytest.param("age", None, "must be an integer greater than 17.0 and less than 121.0", id="null"),
        pytest.param("is_new", 1, "must be true or false", id="number for a boolean"),
    ],
)
def test_error_names_row_and_column(tmp_path, column, value, reason):
    card = load(tmp_path)
    body: type[BaseModel] = create_model("Body", data=(card.rows_type, ...))
    row = dict(zip(card.names, ["north", 3100.0, 30, True], strict=True)) | {column: value}

    for sent in (row, list(row.values())):
        with pytest.raises(ValidationError) as caught:
            body.model_validate({"data": [card.sample_rows[0], sent]})
        [error] = caught.value.errors()
        assert _field_error({**error, "loc": ("body", *error["loc"])}) == {"row": 1, "field": column, "reason": reason}


def test_error_names_the_missing_value_of_a_named_row(tmp_path):
    with pytest.raises(ValidationError) as caught:
        load(tmp_path).validator.validate_python([{"region": "north"}])

    [error] = caught.value.errors()
    assert _field_error({**error, "loc": ("body", "data")}) == {"row": 0, "field": "income", "reason": "is missing"}


@pytest.mark.parametrize("row", [[], ["north"], ["north", 1, 30, True, 1], None, "north"])
def test_rejects_anything_but_rows_of_all_columns(tmp_path, row):
    with pytest.raises(ValidationError):
        load(tmp_path).validator.validate_python([row])


@pytest.mark.parametrize(("value", "is_valid"), [(3.4e38, True), (3.5e38, False), (-3.5e38, False)])
def test_numbers_without_a_range_fit_into_float32(tmp_path, value, is_valid):
    card = load(tmp_path, CHURN.replace("min = 0.0\nmax = 9e5\n", ""))
    rows = [["north", value, 30, True]]

    if is_valid:
        card.validator.validate_python(rows)
    else:
        with pytest.raises(ValidationError):
            card.validator.validate_python(rows)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "churn"', 'name = "churn', r"is not TOML: .*line 1"),
        ('dtype = "int64"', 'dtype = "int32"', r"line 19: inputs\.2\.dtype: "),
        ("nullable = true", "nulable = true", r"line 15: inputs\.1\.nulable: "),
        ('dtype = "bool"', 'dtype = "bool"\nnullable = true', r"line 23: inputs\.3: nullable needs the dtype float32"),
        ('labels = ["stay", "churn"]', "", "output.labels is missing"),
        ('["stay", "churn"]', '["stay", "stay"]', "output.labels has a name twice"),
        ('name = "income"', 'name = "region"', "inputs has region twice"),
        ('"south", nan', '"west", nan', r'sample.rows, row 1: region must be one of "north", "south"'),
        ("[0.81, 0.19]", "[0.81, inf]", "sample: expected has a number that is not finite"),
        ("[0.81, 0.19]", "[0.81]", "sample.expected must have 2 numbers for each row"),
        ("above = 17", "above = 170", "the range is empty"),
        ('values = ["north", "south"]', "values = [1]", "values has 1, which is no string"),
        ("[output]", "[image]\nsize = [8, 8]\nmean = [0.0, 0.0, 0.0]\nstd = [1.0, 1.0, 1.0]\n[output]", r"\[image\]"),
    ],
)
def test_malformed_card_is_refused_with_field_and_line(tmp_path, old, new, message):
    assert old in CHURN
    with pytest.raises(StartupError, match=message):
        load(tmp_path, CHURN.replace(old, new))


def test_missing_card_is_refused(tmp_path):
    with pytest.raises(StartupError, match="there is no model card at"):
        cards.load(tmp_path)


class _Settings(Settings):
    model_card: cards.TabularCard | None = None
    image_card: cards.ImageCard | None = None


@pytest.mark.parametrize("of_folder", [True, False])
def test_setting_is_the_path_of_a_card_or_of_its_folder(tmp_path, monkeypatch, of_folder):
    load(tmp_path)
    monkeypatch.setenv("MODEL_CARD", str(tmp_path if of_folder else tmp_path / "model.toml"))

    card = _Settings().model_card
    assert card
    assert card.model_file == tmp_path / "churn.onnx"
    monkeypatch.setenv("MODEL_CARD", "")
    assert _Settings().model_card is None


@pytest.mark.parametrize(
    ("variable", "text", "reason"),
    [
        ("MODEL_CARD", CHURN.replace('"bool"', '"boolean"'), "line 25: inputs.3.dtype"),
        ("IMAGE_CARD", CHURN, "the model of churn takes rows, and this service images"),
    ],
)
def test_faulty_card_is_a_faulty_setting(tmp_path, monkeypatch, variable, text, reason):
    (tmp_path / "model.toml").write_text(text)
    monkeypatch.setenv(variable, str(tmp_path))

    with pytest.raises(SystemExit) as caught:
        load_settings(_Settings)
    assert str(caught.value).startswith(f"configuration error: {variable}: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


COLUMNS = [Tensor("region", "string", (None, 1)), Tensor("income", "float", (None, 1))]
COLUMNS += [Tensor("is_new", "bool", (None, 1)), Tensor("age", "int64", (None, 1))]
PROBABILITIES = Tensor("probabilities", "float", (None, 2))


def test_binds_columns_by_name_and_the_only_output_that_fits(tmp_path):
    binding = bind(load(tmp_path), COLUMNS, [Tensor("label", "int64", (None,)), PROBABILITIES])

    assert [(part.tensor.name, part.columns) for part in binding.parts] == [
        ("region", (0,)),
        ("income", (1,)),
        ("age", (2,)),
        ("is_new", (3,)),
    ]
    assert binding.output == PROBABILITIES


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        pytest.param(COLUMNS[:3], [PROBABILITIES], "has 4 inputs, the model has", id="width"),
        pytest.param([*COLUMNS[:3], Tensor("years", "int64", (None, 1))], [PROBABILITIES], "inputs region", id="name"),
        pytest.param([*COLUMNS[:3], Tensor("age", "float", (None, 1))], [PROBABILITIES], "age is int64", id="dtype"),
        pytest.param(COLUMNS, [Tensor("p", "float", (None, 3))], "no output has 2 numbers", id="classes"),
        pytest.param(COLUMNS, [PROBABILITIES, Tensor("b", "float", (None, 2))], "must name one of several", id="two"),
    ],
)
def test_card_of_another_model_is_refused(tmp_path, inputs, outputs, message):
    with pytest.raises(StartupError, match=message):
        bind(load(tmp_path), inputs, outputs)


def test_columns_of_several_matrices_are_taken_in_order_or_by_tensor():
    card = cards.default_card()
    probabilities = [Tensor("output", "float", (None, 3))]
    two = [Tensor("sepal", "float", (None, 2)), Tensor("petal", "float", (None, 2))]

    assert [part.columns for part in bind(card, two, probabilities).parts] == [(0, 1), (2, 3)]
    inputs = [each.model_copy(update={"tensor": each.name.partition("_")[0]}) for each in card.inputs]
    named = card.model_copy(update={"inputs": inputs})
    assert {part.tensor.name: part.columns for part in bind(named, two[::-1], probabilities).parts} == {
        "sepal": (0, 1),
        "petal": (2, 3),
    }
