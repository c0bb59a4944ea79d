"""A peer: a script whose first lines (PEP 723) pin its packages and say what was set; its environment, made by uv."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tomllib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.benchmarks.curves import Figures, Point
from scripts.benchmarks.harness import Benchmark
from scripts.devstack.machine import resident_mb
from scripts.devstack.runs import SkippedError
from scripts.devstack.stack import DevStack, ManagedProcess
from scripts.devstack.table import ROOT, ProcessDefinition

HEADER = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)
UV = (sys.executable, "-m", "uv")
INSTALL_WITHIN_S = 900
SAMPLE_EVERY_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Reason(Point):
    """Why there are no figures."""

    @property
    def text(self) -> str:
        """The reason."""
        return self.unit


@dataclass(kw_only=True)
class PeerRun(Benchmark):
    """One pattern beside its peers."""

    run_dir = ROOT / ".run/peers"

    sizes: list[int]
    """How many rows or jobs."""
    chosen: set[str] = field(default_factory=set)
    """Scripts of the peers to run; none: all."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    """The packages in each environment, by peer."""

    def peers(self, folder: str) -> list[Peer]:
        """The chosen peers among the scripts in this folder."""
        found = [Peer.read(path) for path in sorted((Path(__file__).parent / folder).glob("with_*.py"))]
        return [peer for peer in found if not self.chosen or peer.script.stem.removeprefix("with_") in self.chosen]

    def add_at(self, group: str, what: str, at: int, figures: Figures) -> None:
        """Keep the figures of one contestant at one size."""
        points = [
            Point(group=group, what=what, measure=measure, value=value, unit=unit, at=at)
            for measure, (value, unit) in figures.items()
        ]
        self.measurements += points
        self.say(f"{group}: {what}: " + ", ".join(f"{point.measure} {point.text}" for point in points))

    async def attempt(self, group: str, what: str, at: int, measured: Callable[[], Awaitable[None]]) -> None:
        """Run one contestant; the others go on if it fails, or cannot be installed."""
        try:
            await measured()
        except SkippedError as exc:
            self._explain(group, what, at, str(exc))
        except Exception as exc:  # noqa: BLE001 - recorded for the peer that caused it
            self.error = ", ".join(filter(None, [self.error, f"{what} failed in {group}"]))
            self._explain(group, what, at, f"FAILED: {type(exc).__name__}: {exc}")

    def _explain(self, group: str, what: str, at: int, reason: str) -> None:
        self.say(f"{group}: {what}: {reason}")
        line = " ".join(reason.split()).replace("|", "/")
        self.measurements.append(Reason(group=group, what=what, measure="not measured", value=0, unit=line, at=at))


@dataclass(frozen=True)
class Peer:
    """What a script's first lines say."""

    script: Path
    pins: list[str]
    name: str = ""
    settings: str = ""
    docs: str = ""
    program: str = ""
    """A program that the machine must have."""
    worker: tuple[str, ...] = ()
    """Arguments of Python that start a worker."""
    redelivery_s: float = 0
    """Seconds after a worker's death within which its jobs are done again."""
    at_most: int = sys.maxsize
    """Jobs that it gets where the others get more, which would take it an hour."""

    @classmethod
    def read(cls, script: Path) -> Peer:
        """The peer of this script."""
        header = HEADER.search(script.read_text(encoding="utf-8"))
        if header is None:
            raise ValueError(f"{script} does not begin with its packages")
        lines = (line.removeprefix("#").removeprefix(" ") for line in header[1].splitlines())
        found: dict[str, Any] = tomllib.loads("\n".join(lines))
        about = found.get("tool", {}).get("peer", {})
        return cls(script, found["dependencies"], **about | {"worker": tuple(about.get("worker", ()))})

    @property
    def line(self) -> str:
        """For the report: packages, what was set, and where that is documented."""
        return f"- **{self.name}** ({', '.join(self.pins)}): {self.settings}. [Documentation]({self.docs})"

    async def install(self, run: PeerRun) -> str:
        """The interpreter of its environment. Raises SkippedError with the reason if that cannot be made."""
        if self.program and not shutil.which(self.program):
            raise SkippedError(f"not installed: there is no {self.program} on this machine")
        of_script = ("--python", sys.executable, "--script", str(self.script))
        await _output(*UV, "sync", "--quiet", *of_script)
        python = await _output(*UV, "python", "find", "--script", str(self.script))
        if self.name not in run.versions:
            listed = json.loads(await _output(*UV, "pip", "list", "--quiet", "--format=json", "--python", python))
            run.versions[self.name] = {each["name"]: each["version"] for each in listed}
        return python

    def process(self, python: str, name: str, *arguments: str, restart: bool, **env: str) -> ProcessDefinition:
        """A process in its environment."""
        return ProcessDefinition(
            name=name,
            argv=(python, *arguments),
            folder=str(self.script.parent.relative_to(ROOT)),
            env={"PYTHONPATH": str(self.script.parent), "ORT_DISABLE_TELEMETRY": "1", **env},
            restart=restart,
        )


async def _output(*command: str) -> str:
    """What a command of uv prints. Raises SkippedError with its last line if it fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, cwd=ROOT)
    try:
        async with asyncio.timeout(INSTALL_WITHIN_S):
            printed, errors = await process.communicate()
    except TimeoutError:
        raise SkippedError(f"not installed: no end within {INSTALL_WITHIN_S} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    if process.returncode:
        last = (errors.decode().strip().splitlines() or ["uv failed"])[-1]
        raise SkippedError(f"not installed: {last.strip().removeprefix('cause: ')}")
    return printed.decode().strip()


async def run_to_end(stack: DevStack, number: str, definition: ProcessDefinition) -> float:
    """Peak memory in MB of a process and all that it starts. Raises RuntimeError with its last line if it fails."""
    process = await stack.start(number, definition)
    watching = asyncio.create_task(_peak_memory_mb(process))
    code = await stack.wait(process)
    await stack.stop(process)
    if code:
        raise RuntimeError(f"exit code {code}: {(list(process.tail) or ['it printed nothing'])[-1]}")
    return await watching


async def _peak_memory_mb(process: ManagedProcess) -> float:
    peak, pid = 0.0, process.pid
    while not process.stopped.is_set():
        peak = max(peak, sum(resident_mb(each) or 0 for each in process_tree(pid)))
        await asyncio.sleep(SAMPLE_EVERY_S)
    return peak


def process_tree(root: int) -> list[int]:
    """A process and its descendants, whatever groups they have put themselves into."""
    children = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            children[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found = [root]
    for pid in found:  # grows while it is walked
        found += children[pid]
    return found


def kill_tree(root: int) -> None:
    """SIGKILL to all of it. Stopped first, or a worker could start a process between the look and the kill."""
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in process_tree(root):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)


def tables(run: PeerRun) -> Mapping[tuple[str, float], Mapping[str, Mapping[str, float]]]:
    """The figures of each table (by its title and size), by contestant and measure."""
    found: dict[tuple[str, float], dict[str, dict[str, float]]] = {}
    for each in run.measurements:
        if isinstance(each, Point) and not isinstance(each, Reason):
            found.setdefault((each.group, each.at), {}).setdefault(each.what, {})[each.measure] = each.value
    return found
