"""Where the package installs without a compiler, and the manifest that runs it under KServe."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING

import pytest
import yaml

from model_server.flags import parse
from tests.conftest import PACKAGE, ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("platform", ["aarch64-unknown-linux-gnu", "aarch64-apple-darwin"])
def test_every_dependency_has_a_wheel_on_arm64(tmp_path: Path, platform: str) -> None:
    projects = [
        tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        for folder in (PACKAGE.parent / name for name in ("serving_common", "tfserving_protos", PACKAGE.name))
    ]
    common, _, server = projects
    wanted = [each for project in projects for each in project["dependencies"]]
    wanted += [*common["optional-dependencies"]["otel"], *server["optional-dependencies"]["text"]]
    wanted = [each for each in wanted if not each.startswith(("serving-common", "tfserving-protos"))]
    (tmp_path / "requirements.in").write_text("\n".join(wanted))
    command = [sys.executable, "-m", "uv", "pip", "compile", "--only-binary=:all:", f"--python-platform={platform}"]
    command += ["--python-version=3.13", f"--constraints={ROOT / 'constraints.txt'}", "requirements.in"]
    # ONNX Runtime's wheel is for macOS 14 and later.
    environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if re.search("Failed to fetch|error sending request|dns error", done.stderr):
        pytest.skip("there is no package index here")
    assert done.returncode == 0, done.stderr
    assert "onnxruntime==" in done.stdout


def test_kserve_runtime_starts_the_server_with_its_flags() -> None:
    runtime = yaml.safe_load((PACKAGE / "deploy/kserve-runtime.yaml").read_text(encoding="utf-8"))
    [container] = runtime["spec"]["containers"]
    options = parse([argument.replace("{{.Name}}", "iris") for argument in container["args"]])
    assert (options.model_name, options.model_base_path) == ("iris", "/mnt/models")
    ports = {container["readinessProbe"]["httpGet"]["port"], container["livenessProbe"]["httpGet"]["port"]}
    assert ports == {options.rest_api_port} == {container["ports"][0]["containerPort"]}
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(options.rest_api_port)
