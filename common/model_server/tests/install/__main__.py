"""From the wheels to the first answer, in an empty environment without TensorFlow: `make test-wheel`.

Builds the wheels, installs them with pip, nothing cached, starts the server on the ONNX file of Iris, and asks it
over REST. Then validates KServe's manifest. Exit code: 1 if something failed, or if it took too long.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from serving_testing.processes import free_port
from tests.conftest import PACKAGE, ROOT

WITHIN_S = 60
IRIS = ROOT / "models/artifacts/saved_model/iris/1/model.onnx"
UV = (sys.executable, "-m", "uv")


def run(*command: str | Path) -> str:
    """What a command prints. Raises CalledProcessError."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def first_answer(url: str, process: subprocess.Popen[bytes], before: float) -> list[float]:
    """The scores of a row, as soon as the server answers at all."""
    while time.monotonic() < before:
        try:
            response = requests.post(url, json={"instances": [[5.1, 3.5, 1.4, 0.2]]}, timeout=10)
        except requests.ConnectionError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
            continue
        response.raise_for_status()
        scores: list[float] = response.json()["predictions"][0]
        return scores
    raise RuntimeError("no answer from the server")


def main() -> int:
    """Prints how long each step took."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for package in ("serving_common", "tfserving_protos", PACKAGE.name):
            run(*UV, "build", "--quiet", "--wheel", "--out-dir", folder / "wheels", PACKAGE.parent / package)
        wheels = sorted((folder / "wheels").glob("*.whl"))
        (folder / "iris/1").mkdir(parents=True)
        (folder / "iris/1/model.onnx").write_bytes(IRIS.read_bytes())
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv/bin/python"
        started, cpu_before = time.monotonic(), os.times()
        run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *wheels)
        installed_s = time.monotonic() - started
        port, rest_port = free_port(), free_port()
        command = [f"{folder}/venv/bin/tensorflow_model_server", f"--port={port}", f"--rest_api_port={rest_port}"]
        process = subprocess.Popen([*command, "--model_name=iris", f"--model_base_path={folder}/iris"], cwd=folder)
        try:
            url = f"http://127.0.0.1:{rest_port}/v1/models/iris:predict"
            scores = first_answer(url, process, time.monotonic() + WITHIN_S)
        finally:
            process.terminate()
            process.wait()
        took_s, cpu = time.monotonic() - started, os.times()
        packages = run(python, "-m", "pip", "list", "--format=freeze").split()
        size_mb = sum(path.stat().st_size for path in (folder / "venv").rglob("*") if path.is_file()) / 1e6
    assert scores.index(max(scores)) == 0, scores
    assert not [package for package in packages if "tensorflow" in package], packages
    cpu_s = sum(cpu[2:4]) - sum(cpu_before[2:4])
    print(f"installed after {installed_s:.1f} s: {len(packages)} packages, {size_mb:.0f} MB")
    print(f"first answer after {took_s:.1f} s, of which {cpu_s:.1f} s are CPU time")
    run(*UV, "run", "--python", sys.executable, "--script", Path(__file__).with_name("kserve_runtime.py"))
    print("deploy/kserve-runtime.yaml is what the kserve package's model of a ServingRuntime describes")
    return int(took_s > WITHIN_S)


if __name__ == "__main__":
    sys.exit(main())
