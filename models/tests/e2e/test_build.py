import json
import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.build import main
from models.files import sha256_of
from models.manifest import load
from models.tests.conftest import IRIS_MODELS, ROOT, Completed, python, run_build

SETOSA = "iris_svc_0_setosa"


@pytest.fixture
def folder(tmp_path: Path, iris_build: tuple[Path, Completed]) -> Path:
    """A separate output folder with the Iris models."""
    for file in iris_build[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def states(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The state that the last build reported for each artifact: built or up."""
    return {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}


def change_entry(folder: Path, name: str, **changes: object) -> None:
    manifest = folder / "manifest.json"
    document = json.loads(manifest.read_text())
    document["artifacts"][name].update(changes)
    manifest.write_text(json.dumps(document))


def test_second_build_does_nothing_and_imports_no_heavy_library(folder: Path):
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name != ".lock"}
    heavy = "{'numpy', 'onnx', 'onnxruntime', 'scipy', 'skl2onnx', 'sklearn', 'tensorflow', 'tf2onnx'}"
    script = f"import sys; from models.build import main; main(); print(sorted(sys.modules.keys() & {heavy}))"
    done = python("-c", script, "--only", *IRIS_MODELS, "--output", folder)
    *lines, imported = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["label", *IRIS_MODELS]
    assert all("up to date" in line for line in lines)
    assert imported == "[]"
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.name != ".lock"} == before


@pytest.mark.parametrize("content", [b"", None, b"same size"], ids=["empty", "missing", "changed"])
def test_damaged_artifact_is_rebuilt(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes | None):
    path = folder / f"{SETOSA}.onnx"
    good = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(content[:1] * len(good))
    assert main(["--only", *IRIS_MODELS, "--output", str(folder)]) == 0
    assert [name for name, state in states(capsys).items() if state == "built"] == [SETOSA]
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"recipe": {"version": 0, "folds": 5, "repeats": 5, "seed": 0}}, id="older recipe"),
        pytest.param({"libraries": {"scikit-learn": "1.0"}}, id="another scikit-learn"),
        pytest.param({"file": "elsewhere.onnx"}, id="another file"),
        pytest.param({"unknown": 1}, id="unknown field"),
    ],
)
def test_artifact_with_another_recipe_is_rebuilt(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object]
):
    change_entry(folder, SETOSA, **changes)
    assert main(["--only", SETOSA, "--output", str(folder)]) == 0
    assert states(capsys) == {"label": "up", SETOSA: "built"}


def test_missing_library_does_not_force_a_rebuild(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def version(name: str) -> str:
        """Another one of each, as on another Python."""
        if name == "skl2onnx":
            raise metadata.PackageNotFoundError(name)
        return "0"

    monkeypatch.setattr(metadata, "version", version)
    assert main(["--only", SETOSA, "--output", str(folder)]) == 0
    assert states(capsys) == {"label": "up", SETOSA: "up"}


def test_force_rebuilds_current_artifacts(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--only", SETOSA, "--force", "--output", str(folder)]) == 0
    assert states(capsys) == {"label": "built", SETOSA: "built"}


def test_unreadable_manifest_is_rewritten(folder: Path, capsys: pytest.CaptureFixture[str]):
    (folder / "manifest.json").write_text('{"artifacts": {"iris_')
    assert main(["--only", "label", "--output", str(folder)]) == 0
    assert states(capsys) == {"label": "built"}
    assert load(folder / "manifest.json").keys() == {"label"}


@given(
    st.recursive(
        st.none() | st.text() | st.floats() | st.integers(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_load_accepts_any_document(tmp_path_factory: pytest.TempPathFactory, document: object):
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    for content in (document, {"artifacts": document}, {"artifacts": {"iris_svc": document}}):
        path.write_text(json.dumps(content))
        assert load(path) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "iris"],
        ["--weights", "some"],
        ["--weights-file", "resnet50"],
        ["--weights-file", "iris_svc=x.onnx"],
        ["--only", "iris_svc", "--weights-file", "resnet50=x.onnx"],
    ],
)
def test_bad_arguments_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_uncreatable_folder_is_reported_in_one_line(tmp_path: Path):
    (tmp_path / "file").write_text("")
    done = run_build("--only", "label", "--output", tmp_path / "file")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "file") in done.stderr


def test_missing_package_is_reported_in_one_line(tmp_path: Path):
    script = "import sys; sys.modules['skl2onnx'] = None; from models.build import main; sys.exit(main())"
    done = python("-c", script, "--only", SETOSA, "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: skl2onnx")
    assert len(done.stderr.splitlines()) == 1


# A builder that writes half of its artifact, reports it, and waits to be stopped.
HALF = """
import sys, signal
from models.artifacts import Artifact, Plan, table
from models.build import main

def half(target):
    target.write_bytes(b"half")
    print("half written", flush=True)
    signal.pause()

plan = Plan(recipe={"version": 2}, make=half)
artifacts = table() | {"iris_svc": Artifact(file="iris_svc.onnx", plans=lambda options, recorded: [plan])}
sys.exit(main(sys.argv[1:], artifacts))
"""


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)]
)
def test_interrupted_build_keeps_the_old_artifact_and_leaves_no_lock(
    folder: Path, capsys: pytest.CaptureFixture[str], how: signal.Signals, code: int
):
    files = ("iris_svc.onnx", "manifest.json")
    before = [sha256_of(folder / file) for file in files]
    with subprocess.Popen(
        [sys.executable, "-c", HALF, "--only", "iris_svc", "--output", folder], cwd=ROOT, stdout=subprocess.PIPE
    ) as builder:
        assert builder.stdout is not None
        assert builder.stdout.readline() == b"half written\n"
        builder.send_signal(how)
        assert builder.wait(60) == code
    assert [sha256_of(folder / file) for file in files] == before
    assert main(["--only", *IRIS_MODELS, "--output", str(folder)]) == 0
    assert set(states(capsys).values()) == {"up"}


def test_second_builder_waits_and_finds_everything_current(tmp_path: Path):
    command = [sys.executable, "-m", "models.build", "--only", "label", SETOSA, "--output", str(tmp_path)]
    builders = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [builder.communicate()[0] for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0]
    assert sorted("built" in output for output in outputs) == [False, True]
    assert load(tmp_path / "manifest.json")[SETOSA].describes(tmp_path / f"{SETOSA}.onnx")


def test_saved_model_folder_is_replaced_atomically(tmp_path: Path):
    # Reuse the model that `make test` has built, because training takes long.
    built = ROOT / "models/artifacts"
    if (built / "saved_model").is_dir():
        shutil.copytree(built / "saved_model", tmp_path / "saved_model")
        for name in ("manifest.json", "label.json"):
            shutil.copy(built / name, tmp_path)
    first = run_build("--only", "iris_saved_model", "--output", tmp_path)
    assert first.returncode == 0, first.stderr
    version = tmp_path / "saved_model/iris/1"
    assert (version / "saved_model.pb").is_file()

    second = run_build("--only", "iris_saved_model", "--output", tmp_path)
    assert "up to date" in second.stdout

    (version / "saved_model.pb").write_bytes(b"spoiled")
    third = run_build("--only", "iris_saved_model", "--output", tmp_path)
    assert "built in" in third.stdout
    assert (version / "saved_model.pb").stat().st_size > 1000
    assert [path.name for path in version.parent.iterdir()] == ["1"]
