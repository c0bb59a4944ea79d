"""A service as a real process on a free port, and waits for conditions instead of durations."""

import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from random import SystemRandom

HOST = "127.0.0.1"
PORTS = range(20_000, 30_000)
"""Below those that systems give to outgoing connections, and to whoever asks for any port."""
TRIES = 100
NO_COVERAGE = {"COVERAGE_PROCESS_CONFIG": ""}
"""For the environment of a program that is not under test: coverage would almost double the time of its start."""
START_WITHIN_S = 60
STOP_WITHIN_S = 15


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens; no other call returns it as long as this process lives.

    Until its server starts, or if none does, no other process may get it either. Therefore the UDP port of the same
    number stays bound, which every process on the machine can see, and for which nobody here has another use.
    """
    for port in SystemRandom().sample(PORTS, TRIES):
        claim = socket.socket(type=socket.SOCK_DGRAM)
        try:
            claim.bind((HOST, port))  # first: even a short bind of a port that is promised could fail its server's
            with socket.socket() as listener:
                listener.bind((HOST, port))
        except OSError as exc:
            claim.close()
            if exc.errno != errno.EADDRINUSE:
                raise
        else:
            claim.detach()  # stays bound as long as this process lives
            return port
    raise OSError(errno.EADDRINUSE, f"no free port: {TRIES} of {PORTS} are taken")


def wait_until(condition: Callable[[], object], within_s: float = START_WITHIN_S) -> None:
    """Return once the condition holds; AssertionError after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s} s: {condition}"
        time.sleep(0.02)


def answers(url: str) -> bool:
    """Whether GET returns 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used, without its children (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Process:
    """A Python module, with arguments as in a shell, as a separate process; under coverage if `cwd` has its package."""

    def __init__(self, module: str, cwd: Path, env: Mapping[str, str], log: Path) -> None:
        self.log_file = log
        others = {} if (cwd / module.split(".")[0]).is_dir() else NO_COVERAGE
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                [sys.executable, "-m", *shlex.split(module)],
                cwd=cwd,
                env={**os.environ, **others, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        """Everything that it has printed so far."""
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self, url: str) -> None:
        """Return once GET returns 200; AssertionError, with the log, if the process exits or does not answer."""
        wait_until(lambda: self.popen.poll() is not None or answers(url))
        assert self.popen.poll() is None, f"exited with {self.popen.returncode}:\n{self.log}"

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(STOP_WITHIN_S)


@contextmanager
def running(
    module: str, *, cwd: Path, env: Mapping[str, str], log: Path, ready: str | None = None
) -> Iterator[Process]:
    """`python -m module` in a folder, ready when GET `ready` returns 200; killed at the end if it still runs."""
    process = Process(module, cwd, env, log)
    try:
        if ready is not None:
            process.wait_until_ready(ready)
        yield process
    finally:
        process.popen.kill()
        process.popen.wait()
