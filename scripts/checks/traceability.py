"""Traces every requirement of the SPECIFICATION.md files to a test of the last `make test`: `make trace`.

A requirement is a row of a table whose columns are `no.`, `requirement` and `shown by`. The last one holds references,
separated by commas:

    e2e/test_system.py::test_health     a test, below the pattern's tests/, or by its path from the repository's root
    ::test_metadata                     another one of the same file
    e2e/test_faults.py                  all tests of a file
    bench:06  prove:06  compose:06      a measurement, a fault run, the tests in containers
    make:lint                           another target of the Makefile

Tests must have passed in the last `make test`, whose reports are in .run/tests/. References to other targets must name
an existing one.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from scripts.devstack.table import ROOT
from scripts.devstack.terminal import make_console

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

HEADER = re.compile(r"^\| *no\. *\| *requirement *\| *shown by *\|$")
ROW = re.compile(r"^\| *(\w+) *\| *(.*?) *\| *([^|]*?) *\|$")
TARGET = re.compile(r"^(\w+):([\w-]+)$")


class Verdict(StrEnum):
    """The verdict on one reference, or on a requirement."""

    SHOWN = "shown"
    ELSEWHERE = "elsewhere"  # by another target than `make test`
    SKIPPED = "skipped"  # this machine lacks what the test needs
    WRONG = "WRONG"


@dataclass(frozen=True)
class Requirement:
    """One row: its number, text, references, and location."""

    number: str
    text: str
    references: list[str]
    where: str


@dataclass(frozen=True)
class TestRecord:
    """The last run of all tests. outcomes: counts of `passed`, `failed` and `skipped` cases by file and function."""

    __test__ = False  # it is no test of pytest's

    outcomes: Mapping[tuple[str, str], Counter[str]]
    written: Mapping[str, datetime]

    @classmethod
    def read(cls, folder: Path) -> TestRecord:
        """Read the reports of scripts/test.sh, one per part of the repository."""
        outcomes: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        written = {}
        for report in sorted(folder.glob("*.xml")):
            written[report.stem] = datetime.fromtimestamp(report.stat().st_mtime).astimezone()
            for case in ET.parse(report).getroot().iter("testcase"):  # noqa: S314 - written by our own pytest
                name = case.attrib["name"].partition("[")[0]
                is_bad = case.find("failure") is not None or case.find("error") is not None
                outcome = "failed" if is_bad else "skipped" if case.find("skipped") is not None else "passed"
                outcomes[case.attrib.get("file", ""), name][outcome] += 1
        return cls(outcomes, written)

    def of(self, file: str, function: str) -> Counter[str]:
        """Outcomes of a test or, without a function, of a whole file."""
        if function:
            return self.outcomes.get((file, function), Counter())
        return sum((found for (path, _), found in self.outcomes.items() if path == file), Counter())


def requirements(specification: Path) -> Iterator[Requirement]:
    """The rows of its tables, in order."""
    is_inside = False
    for number, line in enumerate(specification.read_text(encoding="utf-8").splitlines(), start=1):
        is_inside = bool(HEADER.match(line)) or (is_inside and line.startswith("|"))
        row = ROW.match(line) if is_inside and not HEADER.match(line) and not line.startswith("| -") else None
        if row:
            references = [each.strip().strip("`") for each in row[3].split(",") if each.strip()]
            yield Requirement(row[1], row[2], references, f"{specification.parent.name}/{specification.name}:{number}")


def check(requirement: Requirement, pattern: Path, record: TestRecord, root: Path = ROOT) -> tuple[Verdict, list[str]]:
    """The verdict on a requirement, with a note on each reference that is wrong or was skipped."""
    if not requirement.references:
        return Verdict.WRONG, ["nothing shows it"]
    verdicts, notes, file = [], [], ""
    for reference in requirement.references:
        if target := TARGET.match(reference):
            is_target = _is_target(target[1], target[2], root)
            verdict, note = (Verdict.ELSEWHERE, "") if is_target else (Verdict.WRONG, "there is no such target")
        else:
            path, _, function = reference.partition("::")
            file = path or file
            verdict, note = _check_test(file, function, pattern, record, root)
        verdicts.append(verdict)
        if note:
            notes.append(f"{reference}: {note}")
    # One passing test is enough; another one that cannot run here gets a note.
    for verdict in (Verdict.WRONG, Verdict.SHOWN, Verdict.ELSEWHERE):
        if verdict in verdicts:
            return verdict, notes
    return Verdict.SKIPPED, notes


def _is_target(kind: str, name: str, root: Path) -> bool:
    if kind == "make":
        return bool(re.search(rf"^{name}:", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for folder in root.glob(f"{name}_*_pattern"):
        # The modules about a pattern have the name of its folder.
        module = folder.name.removeprefix(f"{name}_").removesuffix("_pattern") + ".py"
        files = {
            "bench": root / "scripts/benchmarks" / module,
            "prove": root / "scripts/chaos" / module,
            "compose": folder / "tests/compose.sh",
        }
        return kind in files and files[kind].is_file()
    return False


def _check_test(file: str, function: str, pattern: Path, record: TestRecord, root: Path) -> tuple[Verdict, str]:
    path = next((path for path in (pattern / "tests" / file, root / file) if path.is_file()), None)
    if path is None:
        return Verdict.WRONG, "there is no such file"
    if function and not re.search(rf"^\s*(async )?def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE):
        return Verdict.WRONG, "there is no such test"
    found = record.of(path.relative_to(root).as_posix(), function)
    if found["failed"]:
        return Verdict.WRONG, "failed"
    if found["passed"]:
        return Verdict.SHOWN, ""
    return (Verdict.SKIPPED, "skipped") if found["skipped"] else (Verdict.WRONG, "was not run by the last `make test`")


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 1 if a reference of a requirement is wrong or missing, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    console = make_console()
    record = TestRecord.read(root / ".run/tests")
    table = Table("pattern", "requirements", *Verdict, "tests of", box=box.ASCII2)
    wrong = 0
    for specification in sorted(root.glob("[0-9][0-9]_*_pattern/SPECIFICATION.md")):
        pattern, verdicts = specification.parent, Counter[Verdict]()
        tested = record.written.get(pattern.name)
        if tested is None:
            console.print(f"{pattern.name}: no record of its tests: make test FOLDERS={pattern.name}")
        for requirement in requirements(specification):
            verdict, notes = check(requirement, pattern, record, root)
            verdicts[verdict] += 1
            for note in notes if tested else ():
                console.print(f"{requirement.where}: {requirement.number} {note}", markup=False, soft_wrap=True)
        if not verdicts:
            console.print(f"{specification}: no requirement in it has the form `| no. | requirement | shown by |`")
        wrong += verdicts[Verdict.WRONG] or not verdicts
        counts = [str(verdicts[verdict] or "-") for verdict in Verdict]
        table.add_row(pattern.name, str(verdicts.total()), *counts, f"{tested:%Y-%m-%d %H:%M}" if tested else "never")
    console.print(table)
    console.print("elsewhere: by make bench, prove, test-compose or lint. skipped: not possible on this machine.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
