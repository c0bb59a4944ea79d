"""The worker with a constant instead of the model server, for `make bench`: `python -m tests.constant_worker`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving_common.service import serve
from serving_common.settings import load
from src.configurations import TfServingSettings, WorkerSettings
from src.jobs import Rows
from src.worker.main import create_app


class ConstantModel:
    async def connect(self) -> None:
        pass

    async def why_unavailable(self, within_s: float) -> None:
        pass

    async def why_mismatch(self, within_s: float) -> None:
        pass

    async def predict(self, rows: Rows) -> list[list[float]]:
        return [[0.97, 0.02, 0.01]] * len(rows)


@asynccontextmanager
async def open_constant(_: TfServingSettings) -> AsyncIterator[ConstantModel]:
    yield ConstantModel()


if __name__ == "__main__":
    settings = load(WorkerSettings)
    serve(create_app(settings, open_constant), "worker", settings, any_port=True)
