"""The system under test: at BASE_URL_04 if that is set (compose, a remote deployment), else started as processes."""

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import environment_of
from tests.processes import BatchSystem

JOB_WAIT_S = 3


@pytest.fixture(scope="package")
def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of the API, while jobs run in a loop."""
    if base_url := os.environ.get("BASE_URL_04"):
        with httpx.Client(base_url=base_url, trust_env=False, timeout=60) as client:
            yield client
        return
    models: Path = request.getfixturevalue("models")
    system = BatchSystem(environment_of(models, f"sqlite:///{tmp_path_factory.mktemp('e2e')}/items.db"))
    with system.api() as (client, _), system.batches(JOB_WAIT_S):
        yield client
