"""Starts the real programs on dummies, and looks at what they leave behind."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.devstack.stack import free_ports
from scripts.devstack.table import ROOT
from scripts.devstack.tests.dummies import DUMMIES
from serving_testing.processes import wait_until

PATIENCE_S = 30


def is_alive(pid):
    """Whether the process runs; one that has ended and that nobody has waited for does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


class Program:
    """`make up` or `make demo` while it runs, on free ports."""

    def __init__(self, output: Path, *args, stdout=None, **environ):
        self.output = output
        self.ports = free_ports(DUMMIES, DUMMIES)
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scripts.devstack.tests.dummies", *args],
                cwd=ROOT,
                env=os.environ | {"CONSOLE": "0"} | {name: str(port) for name, port in self.ports.items()} | environ,
                stdout=stdout or file,
                stderr=subprocess.STDOUT,
            )

    def text(self):
        return self.output.read_text()

    def wait_for(self, text):
        wait_until(lambda: text in self.text() or self.process.poll() is not None)
        assert text in self.text(), self.text()

    def lines(self, label):
        """What stands behind this label, its own lines and events."""
        return re.findall(rf"^{label} +\| (.*)$", self.text(), re.MULTILINE)

    def pids(self, label, what="pid"):
        """The process ids that this process has printed, oldest first."""
        return [int(line.split()[1]) for line in self.lines(label) if line.startswith(what)]

    def all_pids(self):
        """Every process that was started, and their children."""
        return {int(pid) for pid in re.findall(r"\| (?:pid|child) (\d+)", self.text())}

    def ends(self):
        """Its exit code, once it has ended with nothing left of it."""
        code = self.process.wait(PATIENCE_S)
        assert [pid for pid in self.all_pids() if is_alive(pid)] == []
        return code


@pytest.fixture
def start(tmp_path):
    """Starts a program on the dummies; killed at the end of the test if it still runs."""
    with contextlib.ExitStack() as programs:

        def start_program(*args, output=tmp_path / "output", **options):
            program = Program(output, *args, **options)
            programs.callback(program.process.wait)
            programs.callback(program.process.terminate)  # nothing, if it has ended
            return program

        yield start_program


@pytest.fixture
def anyio_backend():
    return "asyncio"
