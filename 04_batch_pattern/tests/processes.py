"""API and job as the processes that they are in production."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serving_common.testing import answers, free_port, wait_until

PATTERN = Path(__file__).parents[1]


@dataclass(frozen=True)
class Stack:
    """What API and jobs of one test have in common: their environment."""

    environment: dict[str, str]

    def job(self, *arguments: str, **variables: str) -> "Job":
        """Start a job."""
        return Job(self._start("src.task.job", *arguments, **variables))

    def run_job(self, *arguments: str, **variables: str) -> "Job":
        """One whole batch that succeeded."""
        job = self.job("--once", "--no-wait", *arguments, **variables)
        assert job.wait() == 0, job.log
        return job

    @contextmanager
    def api(self, **variables: str) -> Iterator[httpx.Client]:
        """A client of a started API."""
        port = free_port()
        process = self._start("src.api.app", PORT=str(port), **variables)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client:
            try:
                wait_until(lambda: process.poll() is not None or answers(f"{client.base_url}/health"))
                assert process.poll() is None, process.communicate()[0]
                yield client
            finally:
                process.terminate()
                process.communicate(timeout=20)

    def _start(self, module: str, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=PATTERN,
            env={**os.environ, **self.environment, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


class Job:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log: list[dict[str, Any]] = []
        self.peak_rss_mb = 0.0

    def read_until(self, action: str) -> dict[str, Any]:
        """The next line of the log whose action begins so."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.log.append(json.loads(line))
            if self.log[-1]["action"].startswith(action):
                return self.log[-1]
        raise AssertionError(f"{action!r} was not logged: {self.log}")

    def wait(self) -> int:
        """The exit code."""
        assert self.process.stdout
        self.log += [json.loads(line) for line in self.process.stdout]
        # Popen.wait does not tell what the process used.
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_rss_mb = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
        self.process.stdout.close()
        return self.process.returncode

    @property
    def actions(self) -> list[str]:
        return [line["action"] for line in self.log]
