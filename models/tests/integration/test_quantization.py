"""Builds the vision models in 8-bit integers from the float32 ones by the command line."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from models.artifacts import Options, table
from models.build import is_current, main
from models.download import Downloader
from models.manifest import Entry, load
from models.quantization import views
from models.tests.conftest import MODEL_ZOO, ROOT, run_build, scores

INT8 = ("--only", "mobilenet_v2", "--precision", "int8")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """MobileNetV2 in both precisions, with the Model Zoo's weights if available; the build's output."""
    folder = tmp_path_factory.mktemp("int8")
    zoo, artifacts = MODEL_ZOO / "mobilenet_v2.onnx", ROOT / "models/artifacts"
    weights = [f"--weights-file=mobilenet_v2={zoo}"] if zoo.is_file() else []
    if not weights and (artifacts / "mobilenet_v2.onnx").is_file():  # drawing random ones is slow
        for name in ("mobilenet_v2.onnx", "manifest.json", "sample.jpg", "imagenet_labels.json"):
            shutil.copy(artifacts / name, folder)
    done = run_build(*INT8, "--output", folder, *weights)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_int8_model_is_smaller_and_agrees_with_float32(built: tuple[Path, str]):
    folder, output = built
    entries = json.loads((folder / "manifest.json").read_text())["artifacts"]
    exact, quantised = entries["mobilenet_v2"], entries["mobilenet_v2_int8"]
    for key in ("weights", "inputs", "outputs"):
        assert quantised[key] == exact[key]
    assert quantised["size_bytes"] < exact["size_bytes"] / 3
    found = quantised["metrics"]
    first, among_5 = found["agreement"], found["agreement_among_5"]
    assert f"says what float32 says for {first:.0%} of the images ({among_5:.0%} among the best five; " in output
    assert f"scores differ by {found['mean_absolute_difference']:.3f} on average)" in output
    if exact["weights"] != "random":  # their scores are too close for a meaningful best class
        assert found["agreement"] > 0.7
        assert found["agreement_among_5"] > 0.95

    images = np.concatenate(list(views(6, seed=3)))
    of_int8, of_float = (scores(folder / entry["file"], images) for entry in (quantised, exact))
    assert of_int8.shape == (6, 1000)
    for one, other in zip(of_int8, of_float, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9
    # Other crops of the same photographs: about as far apart as those that the build compared.
    assert 0 < np.abs(of_int8 - of_float).mean() == pytest.approx(found["mean_absolute_difference"], rel=0.5)


def test_convolutions_are_quantised(built: tuple[Path, str]):
    graph = onnx.load(built[0] / "mobilenet_v2_int8.onnx").graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) > 50
    assert {makers[name] for node in convolutions for name in node.input} == {"DequantizeLinear"}


def test_int8_model_is_rebuilt_when_the_float32_model_changes(built: tuple[Path, str], tmp_path: Path):
    folder = built[0]
    assert "mobilenet_v2_int8      up to date" in run_build(*INT8, "--output", folder).stdout
    artifact, entry = table()["mobilenet_v2_int8"], load(folder / "manifest.json")["mobilenet_v2_int8"]

    def is_up_to_date(recorded: Entry) -> bool:
        options = Options(downloader=Downloader(tmp_path), output=folder)
        return is_current(recorded, artifact, artifact.plans(options, recorded), folder)

    assert is_up_to_date(entry)
    assert not is_up_to_date(replace(entry, recipe={**entry.recipe, "source_sha256": "of another"}))


def test_int8_model_is_built_only_on_request(built: tuple[Path, str], capsys: pytest.CaptureFixture[str]):
    assert main(["--only", "mobilenet_v2", "--output", str(built[0])]) == 0
    assert "int8" not in capsys.readouterr().out


def test_environment_variable_requests_int8(
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


def test_missing_float32_model_fails(tmp_path: Path):
    from models.files import BuildError
    from models.quantization import quantize

    with pytest.raises(BuildError, match="does not exist"):
        quantize(tmp_path / "mobilenet_v2.onnx", tmp_path / "int8.onnx", images=1, seed=0)
