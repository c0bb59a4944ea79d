"""Runs the tests of folders in parallel: `python -m serving_testing.run_tests 06_horizontal_microservice_pattern …`.

Every pattern has a package called `src`, so each folder needs processes of its own. A folder that is a large part of
the work is split into shards, and the longest shards start first, so that all cores stay busy to the end. How long a
file takes is known from its last run, in .run/tests. There, NAME.xml has the outcomes of a folder, for `make trace`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path.cwd()  # of the repository
RESULTS = ROOT / ".run/tests"
COVERAGE_PERCENT = 90
# Seconds beside another shard on a machine with two cores, until the first run has measured them.
USUAL_S = {"07_sync_async_pattern": 450, "04_batch_pattern": 430, "scripts": 430, "model_server": 250,
           "03_asynchronous_pattern": 230, "serving_common": 150, "06_horizontal_microservice_pattern": 95,
           "02_synchronous_pattern": 75}  # fmt: skip
OTHERS_S = 15
AT_ROOT = ("models", "scripts", "deploy")


@dataclass(eq=False)
class Folder:
    """A folder with tests: what is run where, and what came of it."""

    path: str
    shards: list[list[str]] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its files in RESULTS."""
        return (ROOT / self.path).name

    @property
    def cwd(self) -> Path:
        """Where its tests run: those AT_ROOT are packages of the repository itself."""
        return ROOT if self.path in AT_ROOT else ROOT / self.path

    @property
    def sources(self) -> list[str]:
        """The packages whose coverage counts."""
        if self.path in AT_ROOT:
            return [self.path]
        if self.path.startswith("common/"):
            return [self.name]
        return [name for name in ("src", "client", "build_model") if any(self.cwd.glob(f"{name}*"))]

    def units(self) -> list[Path]:
        """What must stay in one shard: a file; of scripts and deploy a whole room, whose tests share a run folder."""
        if self.path in ("scripts", "deploy"):
            return sorted(ROOT.glob(f"{self.path}/*/tests"))
        return sorted((ROOT / self.path / "tests").rglob("test_*.py"))

    def file(self, suffix: str, shard: int | None = None) -> Path:
        """Of the folder, or of one of its shards."""
        return RESULTS / (self.name + ("" if shard is None else f"-{shard}") + suffix)


def weights(folder: Folder) -> dict[Path, float]:
    """Seconds that each unit takes, heaviest first."""
    known: Counter[Path] = Counter()
    if folder.file(".xml").exists():
        for case in ET.parse(folder.file(".xml")).getroot().iter("testcase"):
            known[ROOT / case.attrib.get("file", "")] += float(case.attrib["time"])  # type: ignore[assignment]
    usual_s = USUAL_S.get(folder.name, OTHERS_S) / len(folder.units())
    found = {unit: sum(s for file, s in known.items() if file.is_relative_to(unit)) for unit in folder.units()}
    return dict(sorted(((unit, s or usual_s) for unit, s in found.items()), key=lambda item: -item[1]))


def plan(folders: list[Folder], jobs: int) -> list[tuple[Folder, int]]:
    """Divide folders into shards. The shards, longest first."""
    seconds = {folder: weights(folder) for folder in folders}
    share = sum(sum(each.values()) for each in seconds.values()) / (2 * jobs)
    loads: dict[tuple[Folder, int], float] = defaultdict(float)
    for folder, units in seconds.items():
        count = jobs if sum(units.values()) > share else 1
        folder.shards = [[] for _ in range(min(count, len(units)))]
        for unit, each_s in units.items():
            lightest = min(range(len(folder.shards)), key=lambda shard: loads[folder, shard])
            folder.shards[lightest].append(os.path.relpath(unit, folder.cwd))
            loads[folder, lightest] += each_s
    return sorted(loads, key=lambda shard: -loads[shard])


def run(folder: Folder, shard: int) -> None:
    """Run one shard; its output goes to a file."""
    command = [
        *(sys.executable, "-m", "pytest", *folder.shards[shard], f"--rootdir={ROOT}", "-o", "junit_family=xunit1"),
        *(f"--junit-xml={folder.file('.xml', shard)}", f"--cov-config={ROOT}/pyproject.toml", "--cov-report="),
        *(f"--cov={source}" for source in folder.sources),
    ]
    env = os.environ | {"COVERAGE_FILE": str(folder.file(".coverage", shard))}
    with folder.file(".log", shard).open("wb") as log:
        done = subprocess.run(command, cwd=folder.cwd, env=env, stdout=log, stderr=subprocess.STDOUT, check=False)
    folder.codes.append(done.returncode)


def finish(folder: Folder) -> tuple[bool, str]:
    """Merge the shards' coverage and outcomes, and print what they printed. Whether all is well, and one line."""
    shards = range(len(folder.shards))
    env = os.environ | {"COVERAGE_FILE": str(folder.file(".coverage")), "COVERAGE_RCFILE": str(ROOT / "pyproject.toml")}
    coverage = [sys.executable, "-m", "coverage"]
    parts = [str(path) for shard in shards if (path := folder.file(".coverage", shard)).exists()]
    combine = [*coverage, "combine", "--quiet", *parts]
    subprocess.run(combine, cwd=folder.cwd, env=env, check=False, capture_output=True)
    report = [*coverage, "report", f"--fail-under={COVERAGE_PERCENT}"]
    covered = subprocess.run(report, cwd=folder.cwd, env=env, check=False, capture_output=True, text=True)

    suites = ET.Element("testsuites")
    totals: Counter[str] = Counter()
    for path in (folder.file(".xml", shard) for shard in shards):
        if path.exists():
            for suite in ET.parse(path).getroot().iter("testsuite"):
                suites.append(suite)
                totals.update({key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")})
            path.unlink()
    ET.ElementTree(suites).write(folder.file(".xml"))

    logs = [folder.file(".log", shard) for shard in shards]
    print(f"\n\033[1m{folder.path}\033[0m", *(log.read_text(errors="replace") for log in logs), sep="\n")
    print(covered.stdout + covered.stderr, flush=True)
    failed = totals["failures"] + totals["errors"]
    is_well = folder.codes == [0] * len(shards) and covered.returncode == 0
    percent = covered.stdout.split("TOTAL")[-1].split("\n")[0].split()[-1:] or ["?"]
    counts = [f"{totals['tests'] - failed - totals['skipped']} passed", *([f"{failed} failed"] if failed else [])]
    counts += [f"{totals['skipped']} skipped"] if totals["skipped"] else []
    state = "ok" if is_well else "FAILED"
    return is_well, f"{folder.path:<38} {state:<9} coverage {percent[0]:<5} {', '.join(counts)}"


def main() -> int:
    """Exit code: 0 if all tests passed and all coverage is sufficient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+")
    folders = [Folder(path) for path in parser.parse_args().folders]
    # A shell that runs this in the background has SIGINT ignored, and all processes of the tests would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    jobs = int(os.environ.get("JOBS") or os.cpu_count() or 2)
    started = time.monotonic()
    RESULTS.mkdir(parents=True, exist_ok=True)
    shards = plan(folders, jobs)
    for stale in (path for folder in folders for path in RESULTS.glob(f"{folder.name}[-.]*")):
        stale.unlink()
    lines, is_well = {}, True
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, *shard): shard for shard in shards}
        for ended in as_completed(running):
            ended.result()
            folder, shard = running[ended]
            print(f"==> tested {folder.path} {shard + 1}/{len(folder.shards)}", flush=True)
            if len(folder.codes) == len(folder.shards) and folder not in lines:
                ok, lines[folder] = finish(folder)
                is_well = is_well and ok
    print("", *(lines[folder] for folder in folders), sep="\n")
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    print(f"in {minutes} min {seconds:02} s")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
