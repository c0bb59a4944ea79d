import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from serving_common import cards
from serving_common.cards import Card
from serving_common.errors import StartupError, Unavailable
from serving_common.tabular import TabularModel, require_finite

# Sums of the two halves of a row, doubled: [1, 2, 3, 4] → [6, 14].
DOUBLED = """name = "doubled"
file = "model.onnx"
task = "classification"
{extra}
[[inputs]]
name = "a"
[[inputs]]
name = "b"
[[inputs]]
name = "c"
[[inputs]]
name = "d"
[output]
labels = ["low", "high"]
[sample]
rows = [[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 1.0]]
expected = [[6.0, 14.0], [0.0, 2.0]]
"""


def card(folder: Path, text: str = DOUBLED, extra: str = "") -> Card:
    (folder / "model.toml").write_text(text.replace("{extra}", extra))
    return cards.load(folder)


def save(
    folder: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> None:
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "model", inputs, outputs)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), folder / "model.onnx")


@pytest.mark.parametrize("rows", ["N", 1])
def test_runs_a_matrix_row_by_row(make_model, tmp_path, rows):
    path = make_model(rows=rows)

    model = TabularModel.load(card(tmp_path))

    assert model.run(model.encode([[1, 2, 3, 4], [5, 6, 7, 8]])).tolist() == [[6, 14], [22, 30]]
    assert model.version == hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def test_runs_columns_of_mixed_types_with_null_as_nan(tmp_path):
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node(
            "LabelEncoder", ["region"], ["code"], domain="ai.onnx.ml", keys_strings=["n"], values_floats=[1.0]
        ),
        helper.make_node("IsNaN", ["income"], ["is_missing"]),
        helper.make_node("Cast", ["is_missing"], ["missing"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["age"], ["years"], to=TensorProto.FLOAT),
        helper.make_node("Sum", ["code", "missing", "years"], ["price"]),
    ]
    types = {"region": TensorProto.STRING, "income": TensorProto.FLOAT, "age": TensorProto.INT64}
    inputs = [value(name, dtype, ["N", 1]) for name, dtype in types.items()]
    save(tmp_path, nodes, inputs, [value("price", TensorProto.FLOAT, ["N", 1])])
    text = """name = "price"
file = "model.onnx"
task = "regression"
inputs = [{name = "age", dtype = "int64"}, {name = "income", nullable = true}, {name = "region", dtype = "string"}]
output = {value = "price"}
sample = {rows = [[30, nan, "n"], [5, 1.0, "n"]], expected = [[32.0], [6.0]]}
"""

    model = TabularModel.load(card(tmp_path, text))

    assert model.run(model.encode([[7, None, "n"]])).tolist() == [[9]]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({"classlabels_strings": ["high", "low"]}, [[4.0, 3.0], [1.0, 0.0]], id="names in another order"),
        pytest.param({"classlabels_int64s": [3, 8]}, [[3.0, 4.0], [0.0, 1.0]], id="numbers"),
    ],
)
def test_zipmap_is_understood(tmp_path, keys, expected):
    key_type = TensorProto.STRING if "classlabels_strings" in keys else TensorProto.INT64
    nodes = [helper.make_node("ZipMap", ["input"], ["probabilities"], domain="ai.onnx.ml", **keys)]
    item = helper.make_map_type_proto(key_type, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = helper.make_value_info("probabilities", helper.make_sequence_type_proto(item))
    save(tmp_path, nodes, [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2])], [output])
    text = f"""name = "zipped"
file = "model.onnx"
task = "classification"
inputs = [{{name = "a"}}, {{name = "b"}}]
output = {{labels = ["low", "high"]}}
sample = {{rows = [[3.0, 4.0], [0.0, 1.0]], expected = {expected}}}
"""

    TabularModel.load(card(tmp_path, text))


EXPECTED = "expected = [[6.0, 14.0], [0.0, 2.0]]\n"
WITHOUT_EXPECTED = DOUBLED.replace(EXPECTED, "")
MORE_LABELS = WITHOUT_EXPECTED.replace('["low", ', '["low", "middle", ')
INTEGERS = WITHOUT_EXPECTED.replace('name = "d"', 'name = "d"\ndtype = "int64"')
INTEGERS = INTEGERS.replace("4.0]", "4]").replace("1.0]]", "1]]")
FIVE_INPUTS = WITHOUT_EXPECTED.replace('name = "d"', 'name = "d"\n[[inputs]]\nname = "e"').replace("4.0]", "4.0, 5.0]")
FIVE_INPUTS = FIVE_INPUTS.replace("1.0]]", "1.0, 1.0]]")


@pytest.mark.parametrize(
    ("text", "extra", "message"),
    [
        pytest.param(DOUBLED, f'sha256 = "{"0" * 64}"', r"has the SHA-256 .*models\.add", id="wrong hash"),
        pytest.param(DOUBLED.replace("6.0, 14.0", "6.0, 15.0"), "", "the card expects", id="sample mismatch"),
        pytest.param(MORE_LABELS, "", "no output has 3 numbers", id="labels"),
        pytest.param(INTEGERS, "", "d is int64 in the card", id="wrong dtype"),
        pytest.param(FIVE_INPUTS, "", "the card has 5 inputs", id="card of another model"),
    ],
)
def test_card_that_does_not_fit_its_model_is_refused_in_one_line(make_model, tmp_path, text, extra, message):
    make_model()

    with pytest.raises(StartupError, match=message) as caught:
        TabularModel.load(card(tmp_path, text, extra))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "there is no model at", id="missing"),
        pytest.param(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull", id="LFS pointer"),
        pytest.param(b"\x80\x04N.", "is a pickle file", id="pickle"),
        pytest.param(b"\0" * 100, "is not a usable ONNX model", id="zeros"),
    ],
)
def test_file_that_is_no_model_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)

    with pytest.raises(StartupError, match=message):
        TabularModel.load(card(tmp_path))


def test_answer_that_is_not_finite_is_unavailable_and_names_the_row():
    require_finite(np.array([[1.0000001, -1e-9]], np.float32))
    with pytest.raises(Unavailable) as caught:
        require_finite(np.array([[1, 0], [0, np.nan], [np.inf, 0]], np.float32))

    assert caught.value.errors == [{"row": 1, "field": "prediction", "reason": "is not a finite number"}]


def test_two_outputs_need_a_name_in_the_card(tmp_path):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Identity", ["input"], [name]) for name in ("first", "second")]
    outputs = [value(name, TensorProto.FLOAT, ["N", 2]) for name in ("first", "second")]
    save(tmp_path, nodes, [value("input", TensorProto.FLOAT, ["N", 2])], outputs)
    text = """name = "two"
file = "model.onnx"
task = "classification"
inputs = [{name = "a"}, {name = "b"}]
sample = {rows = [[3.0, 4.0]]}
output = {labels = ["low", "high"]}
"""

    with pytest.raises(StartupError, match=r"output\.tensor must name one of several outputs"):
        TabularModel.load(card(tmp_path, text))
    named = text.replace("output = {", 'output = {tensor = "second", ')
    assert TabularModel.load(card(tmp_path, named)).binding.output.name == "second"


def test_sample_whose_answer_is_not_finite_is_refused(tmp_path):
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Log", ["input"], ["output"])]
    save(tmp_path, nodes, [value("input", TensorProto.FLOAT, ["N", 1])], [value("output", TensorProto.FLOAT, ["N", 1])])
    text = """name = "log"
file = "model.onnx"
task = "regression"
inputs = [{name = "a"}]
output = {value = "log"}
sample = {rows = [[-1.0]]}
"""

    with pytest.raises(StartupError, match="answers the sample with numbers that are not finite"):
        TabularModel.load(card(tmp_path, text))
