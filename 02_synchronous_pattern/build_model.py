"""Trains the Iris classifier and exports it as a SavedModel, with an ONNX file beside it: python build_model.py."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

# TensorFlow は import 時に環境変数を読むため、import より前に設定する。
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import tensorflow as tf
from google.protobuf.json_format import MessageToDict
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_OUTPUT = Path(__file__).parent / "saved_model" / "iris"
SEED = 0
EPOCHS = 60
# ポータブルサーバーは、この名前で ONNX に書かれた署名をメタデータとして返す。
SIGNATURES_KEY = "tensorflow_signature_def"
# onnx パッケージの最新版より古いものに固定し、古い ONNX Runtime でも読めるようにする。
ONNX_OPSET, ONNX_IR_VERSION = 18, 9


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy of the exported model on the rows that it was not trained on."""

    accuracy: float
    test_rows: int


def build(output: Path, version: int) -> Evaluation:
    """Train, check and export to the folder `output`/`version`, which appears complete or not at all.

    Raises:
        RuntimeError: the hold-out accuracy is not above 95 %; nothing is exported then.
    """
    model, evaluation = train()
    if evaluation.accuracy <= 0.95:
        raise RuntimeError(f"hold-out accuracy {evaluation.accuracy:.1%} is not above 95 %")
    publish(model, output, version)
    return evaluation


def train() -> tuple[keras.Model, Evaluation]:
    """Train with a fixed seed on a stratified 70:30 split; returns the model and its evaluation."""
    keras.utils.set_random_seed(SEED)
    iris = load_iris()
    x_train, x_test, y_train, y_test = train_test_split(
        iris.data.astype("float32"), iris.target, test_size=0.3, stratify=iris.target, random_state=SEED
    )
    # 正規化もモデルに含める。クライアントは cm 単位の生の値を送るだけでよく、前処理の食い違いが起こらない。
    scale = keras.layers.Normalization()
    scale.adapt(x_train)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            scale,
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(optimizer=keras.optimizers.Adam(0.01), loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train, y_train, epochs=EPOCHS, batch_size=16, verbose=0)
    _, accuracy = model.evaluate(x_test, y_test, verbose=0)
    return model, Evaluation(accuracy=float(accuracy), test_rows=len(x_test))


def publish(model: keras.Model, output: Path, version: int) -> None:
    """Export with the specified signature, then rename into place."""
    output.mkdir(parents=True, exist_ok=True)
    # 監視中のサーバーが書きかけのモデルを読まないように、数字でない名前のフォルダに書き、最後に改名する。
    with tempfile.TemporaryDirectory(prefix=".building-", dir=output) as scratch:
        exported = Path(scratch) / "new"

        def predict(rows: tf.Tensor) -> dict[str, Any]:
            return {"output": model(rows)}

        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serving_default", predict, [tf.TensorSpec((None, 4), tf.float32, name="input")])
        archive.write_out(exported, verbose=False)
        saved = SavedModel.FromString((exported / "saved_model.pb").read_bytes())
        network = to_onnx(model, saved.meta_graphs[0].signature_def)
        (exported / "model.onnx").write_bytes(network.SerializeToString(deterministic=True))
        target = output / str(version)
        if target.exists():
            target.rename(Path(scratch) / "replaced")
        exported.rename(target)


def to_onnx(model: keras.Model, signatures: Mapping[str, Any]) -> onnx.ModelProto:
    """The same network for ONNX Runtime: `input` float32 (N, 4), `output` float32 (N, 3).

    `signatures`: those of the SavedModel, which become metadata of the file.
    """
    scale, hidden, last = model.layers
    # Keras と同じく、分散が 0 に近い特徴量で割り算が発散しないようにする。
    deviation = np.maximum(np.sqrt(np.asarray(scale.variance)), keras.backend.epsilon())
    weights = {"mean": np.asarray(scale.mean), "deviation": deviation}
    for name, layer in (("hidden", hidden), ("last", last)):
        weights[f"{name}_kernel"], weights[f"{name}_bias"] = layer.get_weights()
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [
            node("Sub", ["input", "mean"], ["centred"]),
            node("Div", ["centred", "deviation"], ["scaled"]),
            node("Gemm", ["scaled", "hidden_kernel", "hidden_bias"], ["hidden"]),
            node("Relu", ["hidden"], ["active"]),
            node("Gemm", ["active", "last_kernel", "last_bias"], ["logits"]),
            node("Softmax", ["logits"], ["output"], axis=1),
        ],
        "iris",
        [onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["N", 4])],
        [onnx.helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, ["N", 3])],
        [onnx.numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    network = onnx.helper.make_model(
        graph, ir_version=ONNX_IR_VERSION, opset_imports=[onnx.helper.make_opsetid("", ONNX_OPSET)]
    )
    documents = {name: MessageToDict(signatures[name], preserving_proto_field_name=True) for name in signatures}
    onnx.helper.set_model_props(network, {SIGNATURES_KEY: json.dumps({"signature_def": documents}, sort_keys=True)})
    onnx.checker.check_model(network)
    return network


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT, help="base path (default: saved_model/iris)")
    parser.add_argument("--version", type=int, default=1, help="version number to write (default: 1)")
    arguments = parser.parse_args()
    if arguments.version < 0:
        parser.error("--version must not be negative: no server would see it")
    result = build(arguments.output, arguments.version)
    print(f"accuracy on {result.test_rows} held-out rows: {result.accuracy:.1%}")  # noqa: T201 結果は標準出力に示す
    print(f"wrote {arguments.output / str(arguments.version)}")  # noqa: T201


if __name__ == "__main__":
    main()
