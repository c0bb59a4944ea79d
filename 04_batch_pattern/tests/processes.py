"""The API and the job as the processes that they are in production."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving_testing.processes import free_port, running

PATTERN = Path(__file__).parents[1]


def peak_memory_mb(pid: int) -> float:
    """Peak resident memory of a process; skips the test where there is no /proc."""
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("memory is read from /proc")
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


class JobProcess:
    """A running job and its log."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []

    def read_until(self, action: str) -> dict[str, Any]:
        """Returns the next log line whose action starts with this text."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.log.append(json.loads(line))
            if self.log[-1]["action"].startswith(action):
                return self.log[-1]
        raise AssertionError(f"{action!r} was not logged: {self.log}")

    def wait(self) -> int:
        """Returns the exit code."""
        output, _ = self.process.communicate(timeout=300)
        self.log += [json.loads(line) for line in output.splitlines()]
        return self.process.returncode

    @property
    def actions(self) -> list[str]:
        return [line["action"] for line in self.log]


@dataclass(frozen=True)
class BatchSystem:
    """The API and jobs on one database; `environment` is what their processes share."""

    environment: dict[str, str]

    def job(self, *arguments: str, **variables: str) -> JobProcess:
        """Start a job."""
        return JobProcess(
            subprocess.Popen(
                [sys.executable, "-m", "src.task.job", *arguments],
                cwd=PATTERN,
                env={**os.environ, **self.environment, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def run_job(self, *arguments: str, **variables: str) -> JobProcess:
        """Run one batch, which must succeed."""
        job = self.job("--once", "--no-wait", *arguments, **variables)
        assert job.wait() == 0, job.log
        return job

    @contextmanager
    def batches(self, wait_s: int = 1) -> Iterator[None]:
        """One job after another, as under `restart: always`; all must succeed."""
        stopping = threading.Event()

        def restart_always() -> None:
            while not stopping.is_set():
                job = self.job(JOB_WAIT_SECONDS=str(wait_s))
                assert job.wait() == 0, job.log

        with ThreadPoolExecutor(1) as executor:
            restarting = executor.submit(restart_always)
            try:
                yield
            finally:
                stopping.set()
            restarting.result()

    @contextmanager
    def api(self) -> Iterator[tuple[httpx.Client, int]]:
        """A client of a started API, and the API's process id."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        with tempfile.TemporaryDirectory() as folder:
            environment = self.environment | {"PORT": str(port)}
            log = Path(folder) / "api.log"
            with (
                running("src.api.app", cwd=PATTERN, env=environment, log=log, ready=f"{url}/health") as process,
                httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
            ):
                yield client, process.popen.pid
                assert process.stop() == 0, process.log
