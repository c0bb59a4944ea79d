"""The vision models in 8-bit integers, made by the command line from the float32 ones beside them."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.build import main
from models.quantization import views
from models.tests.conftest import MODEL_ZOO, ROOT, run_build, scores

INT8 = ("--only", "mobilenet_v2", "--precision", "int8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with MobileNetV2 in both precisions, with the model zoo's weights where it is there; what was said."""
    folder = tmp_path_factory.mktemp("int8")
    zoo, artifacts = MODEL_ZOO / "mobilenet_v2.onnx", ROOT / "models/artifacts"
    weights = [f"--weights-file=mobilenet_v2={zoo}"] if zoo.is_file() else []
    if not weights and (artifacts / "mobilenet_v2.onnx").is_file():  # to draw random ones takes long
        for name in ("mobilenet_v2.onnx", "manifest.json", "sample.jpg", "imagenet_labels.json"):
            shutil.copy(artifacts / name, folder)
    done = run_build(*INT8, "--output", folder, *weights)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_it_is_a_quarter_of_the_size_and_says_nearly_the_same(built: tuple[Path, str]):
    folder, said = built
    entries = json.loads((folder / "manifest.json").read_text())["artifacts"]
    exact, quantised = entries["mobilenet_v2"], entries["mobilenet_v2_int8"]
    for key in ("weights", "inputs", "outputs"):
        assert quantised[key] == exact[key]
    assert quantised["size_bytes"] < exact["size_bytes"] / 3
    assert f"says what float32 says for {quantised['metrics']['agreement']:.0%} of the images" in said
    if exact["weights"] != "random":  # whose scores are so close to each other that the best is a matter of chance
        assert quantised["metrics"]["agreement"] > 0.7
        assert quantised["metrics"]["agreement_among_5"] > 0.95

    images = np.concatenate(list(views(6, seed=3)))
    of_int8, of_float = (scores(folder / entry["file"], images) for entry in (quantised, exact))
    assert of_int8.shape == (6, 1000)
    for one, other in zip(of_int8, of_float, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9


def test_its_convolutions_are_quantised(built: tuple[Path, str]):
    graph = onnx.load(built[0] / "mobilenet_v2_int8.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 50
    assert {makers[name] for node in convolutions for name in node.input} == {"DequantizeLinear"}


def test_it_is_made_again_when_the_other_changes(built: tuple[Path, str], tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(built[0], folder)
    assert "mobilenet_v2_int8      up to date" in run_build(*INT8, "--output", folder).stdout
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["artifacts"]["mobilenet_v2_int8"]["recipe"]["source_sha256"] = "of another"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "mobilenet_v2_int8      built in" in run_build(*INT8, "--output", folder).stdout


def test_it_is_only_built_when_asked_for(built: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    assert main(["--only", "mobilenet_v2", "--output", str(built[0])]) == 0
    assert "int8" not in capsys.readouterr().out


def test_the_environment_asks_for_it(
    built: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MODEL_PRECISION", "int8")
    assert main(["--only", "mobilenet_v2", "--output", str(built[0])]) == 0
    assert "mobilenet_v2_int8      up to date" in capsys.readouterr().out
    monkeypatch.setenv("MODEL_PRECISION", "int4")
    with pytest.raises(SystemExit) as exited:
        main(["--only", "mobilenet_v2"])
    assert exited.value.code == 2
    assert "MODEL_PRECISION=int4: choose from float32, int8" in capsys.readouterr().err


def test_without_the_other_there_is_none(tmp_path: Path):
    from models.files import BuildError
    from models.quantization import quantize

    with pytest.raises(BuildError, match="does not exist"):
        quantize(tmp_path / "mobilenet_v2.onnx", tmp_path / "int8.onnx", images=1, seed=0)
