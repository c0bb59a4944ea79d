import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.artifacts import Options, Plan, table
from models.build import is_current, main
from models.download import Downloader, Source
from models.files import BuildError, sha256_of
from models.imagenet import adopt
from models.manifest import load
from models.tests.conftest import MODEL_ZOO, ROOT, Site, python, run_build, scores

IMAGES = np.random.default_rng(7).standard_normal((3, 3, 224, 224), np.float32)


def network(
    *,
    input_name: str = "data",
    output_name: str = "scores",
    batch: int | str | None = "batch",
    size: int = 224,
    classes: int = 1000,
    dtype: int = TensorProto.FLOAT,
    flatten: tuple[str, ...] = ("Flatten",),
    last: str | None = None,
    hidden: str = "hidden",
) -> onnx.ModelProto:
    """Average each colour and multiply by a matrix: the smallest network with the required shapes."""
    weight = np.random.default_rng(1).standard_normal((3, classes), np.float32)
    weights = [numpy_helper.from_array(weight, "weight")]
    if flatten == ("Reshape",):
        weights.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
    nodes = [
        helper.make_node("GlobalAveragePool", [input_name], [hidden]),
        helper.make_node(flatten[0], [hidden, *(["shape"] if flatten == ("Reshape",) else [])], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product" if last else output_name]),
    ]
    if last:
        nodes.append(helper.make_node(last, ["product"], [output_name]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, dtype, [batch, 3, size, size])],
        [helper.make_tensor_value_info(output_name, dtype, [batch, classes])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_branches(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network, with the input read inside the branches of an If."""
    graph = model.graph
    branches = {
        f"{branch}_branch": helper.make_graph(
            [helper.make_node("Identity", ["data"], [branch])],
            branch,
            [],
            [helper.make_tensor_value_info(branch, TensorProto.FLOAT, None)],
        )
        for branch in ("then", "else")
    }
    graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    graph.node[0].input[0] = "chosen"
    choice = helper.make_node("If", ["yes"], ["chosen"])
    choice.attribute.extend(helper.make_attribute(name, body) for name, body in branches.items())
    graph.node.insert(0, choice)
    return model


def with_weights_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """The form of files before IR version 4, such as the Model Zoo's ResNet50."""
    model.ir_version = 3
    model.graph.input.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [3, 1000]))
    return model


@pytest.mark.parametrize(
    "original",
    [
        pytest.param(network(), id="other names"),
        pytest.param(network(input_name="input", output_name="output"), id="our names"),
        pytest.param(network(input_name="output", output_name="input"), id="our names crossed"),
        pytest.param(network(hidden="output"), id="our name in the middle"),
        pytest.param(network(batch=1), id="fixed batch"),
        pytest.param(network(batch=None), id="unnamed batch"),
        pytest.param(with_branches(network()), id="input read in branches"),
        pytest.param(with_weights_as_inputs(network()), id="weights as inputs"),
    ],
)
def test_foreign_file_is_converted(tmp_path: Path, original: onnx.ModelProto):
    source, target = tmp_path / "foreign.onnx", tmp_path / "ours.onnx"
    onnx.save(original, source)
    facts = adopt(source, target)
    assert facts.inputs == [{"name": "input", "dtype": "float32", "shape": ["N", 3, 224, 224]}]
    assert facts.outputs == [{"name": "output", "dtype": "float32", "shape": ["N", 1000]}]
    onnx.checker.check_model(target, full_check=True)
    session = onnxruntime.InferenceSession(target)
    (ours,) = session.run(["output"], {"input": IMAGES})
    one_by_one = np.concatenate([scores(original.SerializeToString(), image[None]) for image in IMAGES])
    np.testing.assert_allclose(ours, one_by_one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("original", "reason"),
    [
        pytest.param(network(size=192), r"float32 \(N, 3, 224, 224\) is needed, not .*192, 192", id="image size"),
        pytest.param(network(classes=10), r"float32 \(N, 1000\) is needed, not .*10\]", id="classes"),
        pytest.param(network(dtype=TensorProto.DOUBLE), "float32 .* is needed, not float64", id="data type"),
        pytest.param(onnx.ModelProto(), "is needed, not none", id="empty"),
        pytest.param(network(batch=1, flatten=("Reshape",)), r"cannot run it on \[2, 3, 224, 224\]", id="one by one"),
        pytest.param(network(last="Softmax"), "it gives probabilities; scores before softmax", id="softmax"),
        pytest.param(network(last="Log"), "its scores are not finite", id="not finite"),
    ],
)
def test_unsuitable_file_is_rejected(tmp_path: Path, original: onnx.ModelProto, reason: str):
    onnx.save(original, tmp_path / "foreign.onnx")
    with pytest.raises(BuildError, match=reason):
        adopt(tmp_path / "foreign.onnx", tmp_path / "ours.onnx")
    assert not (tmp_path / "ours.onnx").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a Git LFS pointer"),
        (b"<!doctype html><html></html>", "is an HTML page"),
        (b"no graph", "is not an ONNX file"),
        (None, "does not exist"),
    ],
)
def test_local_file_that_is_not_a_model_is_reported(
    tmp_path: Path, stderr: Callable[[], str], content: bytes | None, reason: str
):
    path = tmp_path / "weights.onnx"
    if content is not None:
        path.write_bytes(content)
    arguments = ["--only", "resnet50", "--weights-file", f"resnet50={path}", "--output", str(tmp_path / "out")]
    assert main(arguments) == 1
    (line,) = stderr().splitlines()
    assert line.startswith("error: ")
    assert f"{path} {reason}" in line
    assert not (tmp_path / "out" / "resnet50.onnx").exists()


class Builder:
    """The command line in this process, with the Model Zoo's MobileNetV2 replaced by the site's file."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder = site, folder
        onnx.save(network(), folder / "zoo.onnx")
        site.body = (folder / "zoo.onnx").read_bytes()
        self.source = Source(site.url, len(site.body), sha256_of(folder / "zoo.onnx"))

    def __call__(self, *arguments: str) -> int:
        places = ("--output", str(self.folder / "out"), "--cache", str(self.folder / "cache"))
        artifacts = table({"mobilenet_v2": self.source, "resnet50": self.source})
        return main(["--only", "mobilenet_v2", *places, *arguments], artifacts)

    def entry(self) -> dict[str, object]:
        manifest = json.loads((self.folder / "out" / "manifest.json").read_text())
        entry: dict[str, object] = manifest["artifacts"]["mobilenet_v2"]
        return entry


@pytest.fixture
def builder(site: Site, tmp_path: Path) -> Builder:
    return Builder(site, tmp_path)


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_pretrained_weights_are_downloaded_once(builder: Builder, weights: str, capsys: pytest.CaptureFixture[str]):
    assert builder("--weights", weights) == 0
    assert builder.entry()["weights"] == "pretrained"
    assert builder.entry()["recipe"] == {"version": 1, "source_sha256": builder.source.sha256}
    assert (builder.folder / "out" / "imagenet_labels.json").exists()
    assert (builder.folder / "out" / "sample.jpg").read_bytes().startswith(b"\xff\xd8")
    assert builder("--weights", weights, "--force") == 0  # from the cache
    capsys.readouterr()
    assert builder("--weights", weights) == 0
    assert "mobilenet_v2           up to date" in capsys.readouterr().out
    assert len(builder.site.requested_ranges) == 1


def test_pretrained_fails_with_one_line_if_the_download_is_missing(builder: Builder, stderr: Callable[[], str]):
    builder.site.status = 404
    assert builder("--weights", "pretrained") == 1
    *_, last = stderr().splitlines()
    assert last == f"error: mobilenet_v2: {builder.source.url} answered 404 Not Found"
    assert not (builder.folder / "out" / "mobilenet_v2.onnx").exists()


def test_auto_keeps_local_weights_until_they_are_lost(builder: Builder, stderr: Callable[[], str]):
    local = builder.folder / "local.onnx"
    onnx.save(network(batch=1), local)
    assert builder("--weights-file", f"mobilenet_v2={local}") == 0
    assert (builder.entry()["weights"], builder.entry()["recipe"]) == (
        "local",
        {"version": 1, "source_sha256": sha256_of(local)},
    )
    assert builder() == 0
    assert builder.entry()["weights"] == "local"
    (builder.folder / "out" / "mobilenet_v2.onnx").write_bytes(b"spoiled")
    assert builder() == 0
    assert builder.entry()["weights"] == "pretrained"
    assert "warning: mobilenet_v2: its weights came from a local file" in stderr()


def test_another_local_file_is_rebuilt(builder: Builder):
    local = builder.folder / "local.onnx"
    for batch in (1, 2, 1):
        onnx.save(network(batch="N", hidden=f"hidden{batch}"), local)
        assert builder("--weights-file", f"mobilenet_v2={local}") == 0
        assert builder.entry()["recipe"] == {"version": 1, "source_sha256": sha256_of(local)}


def test_the_real_mobilenet_keeps_its_scores(tmp_path: Path):
    source = MODEL_ZOO / "mobilenet_v2.onnx"
    if not source.is_file():
        pytest.skip(f"there is no {source} (set MODEL_ZOO)")
    done = run_build("--only", "mobilenet_v2", "--weights-file", f"mobilenet_v2={source}", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "weights local" in done.stdout
    ours = scores(tmp_path / "mobilenet_v2.onnx", IMAGES)
    np.testing.assert_allclose(ours, scores(source.read_bytes(), IMAGES), rtol=0, atol=1e-4)


# Nothing listens there, as behind a firewall: a test must not need the Model Zoo's host.
OFFLINE = """
import sys
from models.artifacts import table
from models.build import main
from models.download import Source
nowhere = Source("http://127.0.0.1:9/model.onnx", 1, "0")
sys.exit(main(sys.argv[1:], table({"mobilenet_v2": nowhere, "resnet50": nowhere})))
"""


def random_plan(folder: Path) -> Plan:
    """How `--weights random` builds MobileNetV2."""
    options = Options(downloader=Downloader(folder / "cache"), output=folder, weights="random")
    [plan] = table()["mobilenet_v2"].plans(options, None)
    return plan


@pytest.fixture(scope="module")
def random_build(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Both vision models, built by `auto` without a network, in a process that has used TensorFlow before."""
    folder = tmp_path_factory.mktemp("random")
    used_before = "import tensorflow as tf; tf.function(lambda x: x + 1)(tf.constant(1))"
    arguments = ("--only", "mobilenet_v2", "resnet50", "--output", folder, "--cache", folder / "cache")
    done = python("-c", used_before + OFFLINE, *arguments)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet50"])
def test_auto_without_network_uses_random_weights_with_a_warning(random_build: tuple[Path, str], name: str):
    folder, stderr = random_build
    entry = json.loads((folder / "manifest.json").read_text())["artifacts"][name]
    assert entry["weights"] == "random"
    assert entry["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["N", 3, 224, 224]}]
    assert entry["outputs"] == [{"name": "output", "dtype": "float32", "shape": ["N", 1000]}]
    assert {"tensorflow", "keras", "tf2onnx", "onnx"} <= entry["libraries"].keys()
    assert f"warning: {name}: 127.0.0.1:9 cannot be reached" in stderr
    of_one = np.concatenate([scores(folder / f"{name}.onnx", image[None]) for image in IMAGES])
    assert of_one.shape == (3, 1000)
    assert 0.1 < of_one.std(axis=1).mean() < 30  # neither all alike nor one class with certainty
    np.testing.assert_allclose(scores(folder / f"{name}.onnx", IMAGES), of_one, rtol=1e-3, atol=1e-3)


def test_random_weights_satisfy_auto_but_not_pretrained(random_build: tuple[Path, str]):
    folder, _ = random_build
    arguments = ("-c", OFFLINE, "--only", "mobilenet_v2", "--output", folder, "--cache", folder / "cache")
    again = python(*arguments)
    assert "mobilenet_v2           up to date" in again.stdout
    assert (
        again.stderr.strip() == "mobilenet_v2: its weights are random; to try the download again: --weights pretrained"
    )
    pretrained = python(*arguments, "--weights", "pretrained")
    assert pretrained.returncode == 1
    assert "error: mobilenet_v2: 127.0.0.1:9 cannot be reached" in pretrained.stderr


def test_same_seed_gives_the_same_random_weights(random_build: tuple[Path, str], tmp_path: Path):
    folder = ROOT / "models/artifacts"  # where there was no network, `make test` has built the same in another process
    entry = load(folder / "manifest.json").get("mobilenet_v2")
    if entry is None or not is_current(entry, table()["mobilenet_v2"], [random_plan(folder)], folder):
        folder = tmp_path
        done = run_build("--only", "mobilenet_v2", "--weights", "random", "--output", folder)
        assert done.returncode == 0, done.stderr
    assert sha256_of(folder / "mobilenet_v2.onnx") == sha256_of(random_build[0] / "mobilenet_v2.onnx")


def test_random_weights_without_tensorflow_report_how_to_install_it(tmp_path: Path):
    hide = (
        "import importlib.util as u; find = u.find_spec; u.find_spec = lambda n: None if n == 'tensorflow' else find(n)"
    )
    done = python("-c", hide + OFFLINE, "--only", "resnet50", "--weights", "random", "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: resnet50: random weights need tensorflow, not installed")
    assert "`make setup`" in done.stderr
    assert len(done.stderr.splitlines()) == 1
