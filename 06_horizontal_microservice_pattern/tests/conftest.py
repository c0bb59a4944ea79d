import os
import subprocess
import sys
from pathlib import Path

import pytest

from serving_testing.processes import NO_COVERAGE

ROOT = Path(__file__).parents[2]
CLASSES = ("setosa", "versicolor", "virginica")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder with the models, built if they are not there: MODELS_DIR, else models/artifacts."""
    folder = Path(os.environ.get("MODELS_DIR") or ROOT / "models/artifacts")
    names = [f"iris_svc_0_{name}" for name in CLASSES]
    build = [sys.executable, "-m", "models.build", "--output", str(folder), "--only", *names]
    subprocess.run(build, cwd=ROOT, env=os.environ | NO_COVERAGE, check=True)
    return folder
