"""Models added with `python -m models.add`, run in this process; all are really trained, on little data."""

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes, load_wine
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from skops import io

from models import add
from serving_common import cards
from serving_common.tabular import TabularModel

WINE = load_wine()
NAMES = [name.replace("/", "_") for name in WINE.feature_names]
DIABETES = load_diabetes()
RNG = np.random.default_rng(0)
REGIONS = RNG.choice(["north", "south"], 200)
INCOMES = RNG.normal(3000, 500, 200)
INCOMES[::7] = np.nan
CODES, AGES = RNG.integers(0, 4, 200), RNG.normal(40, 9, 200)
STAYS = np.where((REGIONS == "north") ^ (AGES > 40), "stay", "churn")
PEOPLE = np.array([REGIONS, INCOMES, CODES, AGES], object).T
TEXTS = ["good film", "bad film", "great good plot", "awful bad plot"] * 5


def write_csv(path: Path, header: list[str], rows: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def run(folder: Path, *arguments: object) -> int:
    return add.main([*map(str, arguments), "--output", str(folder / "added")])


def added(folder: Path, name: str) -> TabularModel:
    """The model as a service loads it: checked against its card."""
    return TabularModel.load(cards.load(folder / "added" / name))


@pytest.fixture(scope="module")
def wine() -> object:
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(WINE.data, WINE.target_names[WINE.target])


@pytest.fixture(scope="module")
def wine_onnx(wine) -> bytes:
    """With ZipMap, skl2onnx's default."""
    content: bytes = to_onnx(
        wine, initial_types=[("input", FloatTensorType([None, 13]))], target_opset=18
    ).SerializeToString()
    return content


def test_onnx_with_zipmap_and_a_csv_file(tmp_path, wine, wine_onnx, capsys):
    (tmp_path / "wine.onnx").write_bytes(wine_onnx)
    rows = [[*row, label] for row, label in zip(WINE.data, WINE.target_names[WINE.target], strict=True)]
    sample = write_csv(tmp_path / "wine.csv", [*NAMES, "cultivar"], rows)

    assert run(tmp_path, tmp_path / "wine.onnx", "--sample", sample) == 0

    model = added(tmp_path, "wine")
    assert model.card.names == NAMES
    assert model.card.labels == ["class_0", "class_1", "class_2"]
    assert model.card.sha256
    assert [each.min for each in model.card.inputs[:2]] == [pytest.approx(7.23), 0]
    assert model.card.sample
    assert model.card.sample.expected
    np.testing.assert_allclose(model.run(model.encode(WINE.data.tolist())), wine.predict_proba(WINE.data), atol=1e-5)
    screen = capsys.readouterr().out
    assert len(screen.splitlines()) < 30
    assert "ZipMap removed" in screen
    assert "cultivar" in screen
    assert "not known" not in screen


def test_onnx_alone_says_what_could_not_be_known(tmp_path, wine_onnx, capsys):
    (tmp_path / "wine.onnx").write_bytes(wine_onnx)

    assert run(tmp_path, tmp_path / "wine.onnx", "--name", "mine", "--labels", "a,b,c") == 0

    card = added(tmp_path, "mine").card
    assert (card.names[:2], card.labels) == (["x0", "x1"], ["a", "b", "c"])
    screen = capsys.readouterr().out
    assert "not known      the names of the columns" in screen
    assert "not known      real rows" in screen


def forest() -> tuple[object, object, list[str]]:
    return RandomForestClassifier(5, n_jobs=2, random_state=0).fit(WINE.data, WINE.target), WINE.data, NAMES


def boosting() -> tuple[object, object, list[str]]:
    model = GradientBoostingRegressor(n_estimators=5, random_state=0).fit(DIABETES.data, DIABETES.target)
    return model, DIABETES.data, DIABETES.feature_names


def mixed() -> tuple[object, object, list[str]]:
    columns = ColumnTransformer(
        [
            ("region", OneHotEncoder(handle_unknown="ignore"), [0]),
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), [1, 3]),
            ("code", OrdinalEncoder(), [2]),
        ]
    )
    return make_pipeline(columns, LogisticRegression()).fit(PEOPLE, STAYS), PEOPLE, ["region", "income", "code", "age"]


def missing() -> tuple[object, object, list[str]]:
    data = np.array([INCOMES, AGES]).T
    model = make_pipeline(SimpleImputer(), HistGradientBoostingClassifier(max_iter=3)).fit(data, AGES > 40)
    return model, data, ["income", "age"]


def text() -> tuple[object, object, list[str]]:
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(TEXTS, [1, 0] * 10)
    return model, np.array(TEXTS, object)[:, None], ["review"]


def calibrated() -> tuple[object, object, list[str]]:
    flags = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]] * 10)
    return CalibratedClassifierCV(RidgeClassifier()).fit(flags, flags[:, 0]), flags, ["is_new", "is_paid"]


@pytest.mark.parametrize("make", [forest, boosting, mixed, missing, text, calibrated])
def test_skops_answers_as_scikit_learn(tmp_path, make, capsys):
    model, data, names = make()
    io.dump(model, tmp_path / "own.skops")
    sample = write_csv(tmp_path / "own.csv", names, np.asarray(data).tolist())

    code = run(tmp_path, tmp_path / "own.skops", "--sample", sample, "--value", "y")

    output = capsys.readouterr()
    assert code == 0, output.err
    served = added(tmp_path, "own")
    assert served.card.names == list(names)
    rows = [[None if isinstance(value, float) and np.isnan(value) else value for value in row] for row in data.tolist()]
    served.card.validator.validate_python(rows)
    own = data[:, 0] if make is text else data
    wanted = model.predict(own)[:, None] if make is boosting else model.predict_proba(own)
    np.testing.assert_allclose(served.run(served.encode(rows)), wanted, rtol=1e-5, atol=1e-5)
    assert "equal to scikit-learn's own answers" in output.out
    if make is mixed:
        dtypes = {each.name: (each.dtype, each.nullable) for each in served.card.inputs}
        assert dtypes == {
            "region": ("string", False),
            "income": ("float32", True),
            "code": ("int64", False),
            "age": ("float32", False),
        }
        assert served.card.inputs[0].values == ["north", "south"]


class Own(LogisticRegression):  # type: ignore[misc]  # sklearn has no types
    """A type that nobody but its author knows."""


def two_outputs() -> bytes:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Softmax", ["input"], ["a"]), helper.make_node("Softmax", ["input"], ["b"])]
    outputs = [value(name, TensorProto.FLOAT, ["N", 2]) for name in ("a", "b")]
    graph = helper.make_graph(nodes, "two", [value("input", TensorProto.FLOAT, ["N", 2])], outputs)
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return content


def scaled(kind: str) -> bytes:
    value = helper.make_tensor_value_info
    dtype = getattr(TensorProto, kind)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["y"])],
        "same",
        [value("input", dtype, ["N", 1])],
        [value("y", dtype, ["N", 1])],
    )
    content: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return content


def skops_of(model: object) -> bytes:
    content: bytes = io.dumps(model)
    return content


def fitted(model: object) -> object:
    return model.fit([[1.0, 2.0], [2.0, 1.0]], [0, 1])  # type: ignore[attr-defined]


REFUSED = {
    "pickle file": ("own.onnx", lambda: pickle.dumps({"a": 1}), [], "is a pickle file"),
    "LFS pointer": ("own.onnx", lambda: b"version https://git-lfs.github.com/spec/v1\n", [], "git lfs pull"),
    "not ONNX": ("own.onnx", lambda: b"\x08\x09nothing", [], "not a usable ONNX model"),
    "another format": ("own.h5", lambda: b"\x89HDF", [], "export it to one of them"),
    "two outputs": ("own.onnx", two_outputs, [], "choose one with --output-tensor"),
    "unknown output": ("own.onnx", two_outputs, ["--output-tensor", "c"], "there is no output c"),
    "missing label": (
        "own.onnx",
        two_outputs,
        ["--output-tensor", "a", "--labels", "x"],
        "give them all with --labels",
    ),
    "dtype": ("own.onnx", lambda: scaled("UINT8"), [], "add a Cast to the model"),
    "untrusted type": ("own.skops", lambda: skops_of(fitted(Own())), [], "--trust "),
    "scores for probabilities": ("own.skops", lambda: skops_of(fitted(RidgeClassifier())), [], "no probabilities"),
    "not skops": ("own.skops", lambda: b"PK nothing", [], "skops.io.dump"),
    "step without ONNX": (
        "own.skops",
        lambda: skops_of(fitted(make_pipeline(FunctionTransformer(np.log1p), LinearRegression()))),
        ["--trust", "numpy.log1p"],
        "cannot be converted to ONNX",
    ),
}


@pytest.mark.parametrize(("file", "content", "arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_line_with_the_next_step(tmp_path, capsys, file, content, arguments, reason):
    (tmp_path / file).write_bytes(content())

    assert run(tmp_path, tmp_path / file, *arguments) == 1

    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line
    assert "(" in line
    assert [path.name for path in (tmp_path / "added").glob("[!.]*")] == []


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        pytest.param([["x"], ["inf"]], "row 0: x is inf, which is not finite", id="infinite"),
        pytest.param([["x"], ["north"]], "row 0: x is 'north', but the model takes float32", id="string"),
        pytest.param([["x"], ["nan"]], "not finite", id="missing value that the model cannot take"),
        pytest.param([["x", "y", "z"], ["1", "2", "3"]], "has 3 columns, the model takes 1", id="other columns"),
        pytest.param([["x"], ["1", "2"]], "row 0: 2 values", id="ragged"),
        pytest.param([["x"]], "has no rows", id="no rows"),
    ],
)
def test_csv_file_that_does_not_fit_is_refused(tmp_path, capsys, cells, reason):
    (tmp_path / "own.onnx").write_bytes(scaled("FLOAT"))
    sample = write_csv(tmp_path / "own.csv", cells[0], cells[1:])

    assert run(tmp_path, tmp_path / "own.onnx", "--sample", sample) == 1

    [line] = capsys.readouterr().err.splitlines()
    assert reason in line


def test_one_score_for_two_classes_is_no_probability(tmp_path, capsys):
    (tmp_path / "own.onnx").write_bytes(scaled("FLOAT"))
    sample = write_csv(tmp_path / "own.csv", ["x"], [["True"], ["2.5"]])  # True: as pandas writes it, for 1

    assert run(tmp_path, tmp_path / "own.onnx", "--sample", sample, "--labels", "a", "b") == 1

    assert capsys.readouterr().err == "error: y gives no probabilities: 1, 2.5 (export the model with them)\n"


def test_image_classifier_has_size_and_layout_of_its_input(tmp_path, capsys):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("ReduceMean", ["image"], ["y"], axes=[1, 2], keepdims=0)]
    graph = helper.make_graph(
        nodes,
        "mean",
        [value("image", TensorProto.FLOAT, ["N", 192, 160, 3])],
        [value("y", TensorProto.FLOAT, ["N", 3])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), tmp_path / "i.onnx")

    assert run(tmp_path, tmp_path / "i.onnx", "--labels", "red,green,blue") == 0

    card = cards.load(tmp_path / "added/i")
    assert card.image
    assert (card.image.size, card.image.layout, card.labels) == ([192, 160], "NHWC", ["red", "green", "blue"])
    assert "not known      mean and std" in capsys.readouterr().out
