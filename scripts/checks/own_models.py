"""Twelve unlike models of one's own, from file to answers: `make prove PROVE=models`.

Each is made by its own library, added with models.add, and served by the real processes of 03, 04 and 06, an image
classifier by those of 07. All answers must equal those of the library within 1e-5. Exit code 0 if they do.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from scripts.devstack.own_model import chosen
from scripts.devstack.patterns import OWN_MODELS, PATTERNS
from scripts.devstack.patterns.sync_async import request_body
from scripts.devstack.stack import private_stack, run
from scripts.devstack.table import ROOT

Array = np.ndarray[Any, np.dtype[Any]]

WITHIN = 1e-5
ROWS = 20
JOB_WITHIN_S = 120
RUN_DIR = ROOT / ".run/own-models"
PAGES = (ROOT / "docs/own-model.md", ROOT / "docs/own-model.ja.md")
BLOCK = re.compile(r"(<!-- prove:models -->\n).*?(<!-- /prove -->)", re.DOTALL)


@dataclass(frozen=True)
class Made:
    """A model as its author has it. `answers`: what its library says of the first rows, shape (N, numbers)."""

    file: Path
    answers: Array
    header: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    options: Sequence[str] = ()
    image: bytes = b""


@dataclass
class ServedModel:
    """What came of one model. `seconds`: from file to answers; `difference`: the largest, of any pattern."""

    name: str
    what: str
    add_s: float = 0.0
    seconds: float = 0.0
    difference: dict[str, float] = field(default_factory=dict)
    error: str = ""


def _skops(folder: Path, model: Any, rows: Any, header: Sequence[str], *options: str, own: Any = None) -> Made:
    """The model in a .skops file; `own`: the rows as it takes them, where they are no matrix."""
    from skops import io as skops_io

    skops_io.dump(model, folder / "model.skops")
    first = (rows if own is None else own)[:ROWS]
    answers = model.predict_proba(first) if hasattr(model, "predict_proba") else model.predict(first)[:, None]
    return Made(folder / "model.skops", answers, header, np.asarray(rows).tolist(), options)


def _wine() -> tuple[Any, Any, list[str]]:
    from sklearn.datasets import load_wine

    data = load_wine()
    return data.data, data.target_names[data.target], [name.replace("/", "_") for name in data.feature_names]


def wine(folder: Path) -> Made:
    """13 features, 3 classes with names"""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, classes, names = _wine()
    return _skops(folder, make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, classes), rows, names)


def breast_cancer(folder: Path) -> Made:
    """30 features, 2 classes"""
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = load_breast_cancer()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(data.data, data.target)
    names = [name.replace(" ", "_") for name in data.feature_names]
    return _skops(folder, model, data.data, names, "--labels", "malignant", "benign")


def diabetes(folder: Path) -> Made:
    """regression of 10 features"""
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import Ridge

    data = load_diabetes()
    return _skops(folder, Ridge().fit(data.data, data.target), data.data, data.feature_names, "--value", "progression")


def mixed(folder: Path) -> Made:
    """strings and numbers through a ColumnTransformer"""
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    random = np.random.default_rng(0)
    regions, incomes, ages = random.choice(["north", "south"], 200), random.normal(3, 1, 200), random.normal(40, 9, 200)
    columns = ColumnTransformer([("region", OneHotEncoder(), [0]), ("numbers", StandardScaler(), [1, 2])])
    rows = np.array([regions, incomes, ages], object).T
    model = make_pipeline(columns, LogisticRegression()).fit(rows, np.where(ages > 10 * incomes, "stay", "churn"))
    return _skops(folder, model, rows, ["region", "income", "age"])


def gradient_boosting(folder: Path) -> Made:
    """gradient boosting, 3 classes"""
    from sklearn.ensemble import GradientBoostingClassifier

    rows, classes, names = _wine()
    return _skops(folder, GradientBoostingClassifier(n_estimators=20, random_state=0).fit(rows, classes), rows, names)


def random_forest(folder: Path) -> Made:
    """random forest with 2 threads"""
    from sklearn.ensemble import RandomForestClassifier

    rows, classes, names = _wine()
    return _skops(folder, RandomForestClassifier(50, n_jobs=2, random_state=0).fit(rows, classes), rows, names)


def missing_values(folder: Path) -> Made:
    """an imputer, and rows with null"""
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, classes, names = _wine()
    rows = rows[:, :4].copy()
    rows[::3, 1] = np.nan
    model = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(rows, classes)
    return _skops(folder, model, rows, names[:4])


def text(folder: Path) -> Made:
    """TF-IDF of a column of text"""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = ["a good film", "a bad film", "great, good plot", "awful bad plot", "Good fun!", "so bad, so long"] * 5
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts, [1, 0] * 15)
    options = ("--labels", "negative", "positive")
    return _skops(folder, model, np.array(texts, object)[:, None], ["review"], *options, own=texts)


def integer_codes(folder: Path) -> Made:
    """categories as integers"""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    rows = np.random.default_rng(0).integers(0, 4, (200, 3))
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, rows.sum(axis=1) > 4)
    return _skops(folder, model, rows, ["product", "channel", "plan"], "--labels", "no", "yes")


KERAS = """
import sys, keras, numpy as np
rows = np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
visits, amounts = keras.Input((4,), name="visits"), keras.Input((2,), name="amounts")
parts = [keras.layers.Dense(8, "relu")(visits), keras.layers.Dense(4, "relu")(amounts)]
answer = keras.layers.Dense(3, "softmax")(keras.layers.Concatenate()(parts))
model = keras.Model([visits, amounts], answer)
model.export(sys.argv[1], verbose=False)
np.savez(sys.argv[2], rows=rows, answers=model.predict([rows[:, :4], rows[:, 4:]], verbose=0))
"""


def keras(folder: Path) -> Made:
    """a Keras SavedModel with two inputs"""
    command = [sys.executable, "-c", KERAS, str(folder / "model"), str(folder / "answers.npz")]
    subprocess.run(command, check=True, capture_output=True)
    with np.load(folder / "answers.npz") as found:
        rows, answers = found["rows"].tolist(), found["answers"]
    header = [f"visits_{i}" for i in range(4)] + [f"amounts_{i}" for i in range(2)]
    options = ("--inputs", "visits", "amounts", "--labels", "low", "middle", "high")
    return Made(folder / "model", answers[:ROWS], header, rows, options)


def one_row(folder: Path) -> Made:
    """an ONNX export for batches of one row"""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, classes, names = _wine()
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, classes)
    exported = to_onnx(model, initial_types=[("input", FloatTensorType([1, 13]))], target_opset=18)
    (folder / "model.onnx").write_bytes(exported.SerializeToString())
    return Made(folder / "model.onnx", model.predict_proba(rows[:ROWS]), names, rows.tolist())


def image(folder: Path) -> Made:
    """an ONNX image classifier, 192x192, NHWC"""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper
    from PIL import Image

    random = np.random.default_rng(0)
    shapes = {"kernel": (8, 3, 3, 3), "weights": (8, 10), "bias": (10,)}
    constants = [
        numpy_helper.from_array(random.normal(size=shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    nodes = [
        helper.make_node("Transpose", ["image"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["channels", "kernel"], ["convolved"], strides=[2, 2]),
        helper.make_node("Relu", ["convolved"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weights", "bias"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "image",
        [value("image", TensorProto.FLOAT, ["N", 192, 192, 3])],
        [value("probabilities", TensorProto.FLOAT, ["N", 10])],
        constants,
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    pixels = random.integers(0, 256, (192, 192, 3)).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    values = ((pixels / 255 - 0.5) / 0.5).astype(np.float32)[None]
    answers = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": values})[0]
    options = ("--labels", *(f"class-{i}" for i in range(10)), "--mean", *["0.5"] * 3, "--std", *["0.5"] * 3)
    return Made(path, answers, options=options, image=content.getvalue())


MODELS: Mapping[str, Callable[[Path], Made]] = {
    each.__name__: each
    for each in (
        *(wine, breast_cancer, diabetes, mixed, gradient_boosting, random_forest),
        *(missing_values, text, integer_codes, keras, image, one_row),
    )
}


def main() -> int:
    """Exit code: 0 if every model was served with its library's answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; all by default")
    parser.add_argument("--output", help="any value also writes the table into docs/own-model.md")
    options = parser.parse_args()
    return run(check(options.models or list(MODELS), write=options.output is not None))


async def check(names: Sequence[str], *, write: bool) -> int:
    """Add and serve these models, one after the other, and print the table."""
    results = []
    for name in names:
        result = ServedModel(name, (MODELS[name].__doc__ or "").strip())
        results.append(result)
        with tempfile.TemporaryDirectory() as folder:
            try:
                await _add_and_serve(MODELS[name](Path(folder)), result, Path(folder))
            except Exception as exc:  # noqa: BLE001 - the others are still tried
                result.error = f"{type(exc).__name__}: {str(exc).strip().splitlines()[-1:]}"
        print(line_of(result), flush=True)
    table = "\n".join(table_of(results))
    print(f"\n{table}")
    if write:
        for page in PAGES:
            text = page.read_text(encoding="utf-8")
            page.write_text(BLOCK.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text), encoding="utf-8")
    return 1 if any(map(is_wrong, results)) else 0


def is_wrong(result: ServedModel) -> bool:
    """Whether the model failed, or an answer differs."""
    return bool(result.error) or not all(each <= WITHIN for each in result.difference.values())


def table_of(results: Sequence[ServedModel]) -> list[str]:
    """The lines of the table, in Markdown."""
    head = ["| model | models.add, s | file to answers, s | patterns | largest difference |", "|---|---|---|---|---|"]
    return head + [line_of(result) for result in results]


def line_of(result: ServedModel) -> str:
    """One line of the table."""
    if result.error:
        return f"| {result.what} | {result.add_s:.0f} | failed | | {result.error} |"
    worst = max(result.difference.values())
    patterns = " ".join(sorted(result.difference))
    return f"| {result.what} | {result.add_s:.0f} | {result.seconds:.0f} | {patterns} | {worst:.0e} |"


async def _add_and_serve(made: Made, result: ServedModel, folder: Path) -> None:
    options = list(made.options)
    if made.rows:
        with (folder / "rows.csv").open("w", newline="") as file:
            csv.writer(file).writerows([made.header, *made.rows])
        options = ["--sample", str(folder / "rows.csv"), *options]
    started = time.monotonic()
    command = [sys.executable, "-m", "models.add", str(made.file), "--name", "own", "--output", str(folder), *options]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    result.add_s = time.monotonic() - started
    numbers = ["07"] if made.image else ["03", "04", "06"]
    numbers, patterns, _ = chosen("own", numbers, OWN_MODELS, print, folder)
    table = {**PATTERNS, **patterns}
    async with (
        private_stack(numbers, RUN_DIR, table=table, environ={"JOB_WAIT_SECONDS": "0"}) as stack,
        httpx.AsyncClient(trust_env=False, timeout=60) as client,
    ):
        for number in numbers:
            answers = await ASK[number](client, stack.urls, made)
            result.difference[number] = float(
                np.max(np.abs(answers - made.answers) / np.maximum(1, np.abs(made.answers)))
            )
        result.seconds = time.monotonic() - started


def _rows(made: Made) -> list[list[Any]]:
    return [
        [None if isinstance(value, float) and np.isnan(value) else value for value in row] for row in made.rows[:ROWS]
    ]


async def _ask_03(client: httpx.AsyncClient, urls: Mapping[str, str], made: Made) -> Array:
    proxy = urls["PORT_03_PROXY"]
    submitted = (await client.post(f"{proxy}/predict", json={"data": _rows(made)})).raise_for_status().json()
    job = (await client.get(f"{proxy}/job/{submitted['job_id']}", params={"wait": 30})).raise_for_status().json()
    found = job["result"]
    return np.array(found["probabilities"] if "probabilities" in found else [[value] for value in found["value"]])


async def _ask_04(client: httpx.AsyncClient, urls: Mapping[str, str], made: Made) -> Array:
    api = urls["PORT_04_API"]
    items = {"items": [{"values": row} for row in _rows(made)]}
    (await client.post(f"{api}/data/list", json=items)).raise_for_status()
    async with asyncio.timeout(JOB_WITHIN_S):
        # The job sends no notification when it is done.
        while (await client.get(f"{api}/data/unpredicted")).json():  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    done = (await client.get(f"{api}/data/predicted")).raise_for_status().json()
    return np.array([list(item["prediction"].values()) for item in sorted(done, key=lambda item: item["id"])])


async def _ask_06(client: httpx.AsyncClient, urls: Mapping[str, str], made: Made) -> Array:
    answer = (await client.post(f"{urls['PORT_06_PROXY']}/predict", json={"data": _rows(made)})).raise_for_status()
    rows = answer.json()["own"]["prediction"]
    return np.array([[row["value"]] if isinstance(row, dict) else row for row in rows])


async def _ask_07(client: httpx.AsyncClient, urls: Mapping[str, str], made: Made) -> Array:
    """The probabilities of the five best classes, the others as they should be; of the worse of the two models."""
    proxy = urls["PORT_07_PROXY"]
    job_id = (await client.post(f"{proxy}/predict", json=request_body(made.image))).raise_for_status().json()["job_id"]
    job = (await client.get(f"{proxy}/job/{job_id}", params={"wait": 30, "detail": True})).raise_for_status()
    entry = job.json()[job_id]
    both = [made.answers[0].copy(), made.answers[0].copy()]
    for answers, top5 in zip(both, (entry["top5"], entry["sync"]["top5"]), strict=True):
        for each in top5:
            answers[int(each["label"].removeprefix("class-"))] = each["probability"]
    return np.array([max(both, key=lambda answers: float(np.abs(answers - made.answers[0]).max()))])


ASK = {"03": _ask_03, "04": _ask_04, "06": _ask_06, "07": _ask_07}


if __name__ == "__main__":
    sys.exit(main())
