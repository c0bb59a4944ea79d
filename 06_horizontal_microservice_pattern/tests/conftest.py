import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    subprocess.run([sys.executable, "-m", "models.build", "--output", folder, "--only", *names], cwd=ROOT, check=True)
    return folder
