"""The report of `make bench`: tables in bench.md, everything in bench.json, and the plots."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from scripts.benchmarks import plots
from scripts.benchmarks.side_by_side import PERCENTILES
from scripts.devstack.machine import described, libraries, machine
from scripts.devstack.runs import PatternRun, Profile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from scripts.benchmarks.harness import Benchmark, Measurement
    from scripts.benchmarks.side_by_side import SideBySide

INTRODUCTION = """\
Everything ran on one machine, the load generator included: what takes turns in one run can be compared, and ratios
hold elsewhere. Absolute figures are this machine's.
"""


def tables(measurements: Iterable[Measurement]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The measurements as tables: group, columns, rows."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    for group, of_group in groups.items():
        measures = list(dict.fromkeys(each.measure for each in of_group))
        has_targets = any(each.target for each in of_group)
        rows = []
        for what in dict.fromkeys(each.what for each in of_group):
            cells = {each.measure: each for each in of_group if each.what == what}
            row = [what, *(cells[measure].text if measure in cells else "" for measure in measures)]
            targets = ", ".join(each.target for each in cells.values() if each.target)
            rows.append([*row, targets] if has_targets else row)
        yield group, ["", *measures, *(["target"] if has_targets else [])], rows


def markdown(measurements: Iterable[Measurement]) -> str:
    """A heading and a table for each group."""
    lines = []
    for group, columns, rows in tables(measurements):
        alignment = ["---", *("---:" for _ in columns[1:])]
        lines += ["", f"### {group}", "", *(f"| {' | '.join(row)} |" for row in (columns, alignment, *rows))]
    return "\n".join(lines) + "\n"


def notes(run: PatternRun) -> list[str]:
    """What was not measured, with the reasons."""
    return [f"\n{what}\n" for what in (*(f"Skipped: {reason}." for reason in run.skipped), run.error) if what]


def write(
    together: SideBySide, benchmarks: Sequence[Benchmark], profile: Profile, seconds: float, output: Path
) -> list[Path]:
    """Write bench.md, bench.json and the plots; their paths."""
    output.mkdir(parents=True, exist_ok=True)
    alone = [each for benchmark in benchmarks for each in benchmark.measurements]
    drawn = plots.draw(together, alone, output) if together.loads else []
    command = "make bench" + ("" if profile is Profile.SHORT else f" BENCH={profile}")
    text = [f"# Measured\n\n`{command}` on {described()}; {seconds / 60:.0f} min.\n\n{INTRODUCTION}"]
    text += [f"\n![{path.stem.replace('_', ' ')}]({path.name})\n" for path in drawn]
    text += ["\n## Side by side\n", markdown(together.measurements())]
    text += notes(together)
    for benchmark in benchmarks:
        text += [f"\n## {benchmark.title}\n", markdown(benchmark.measurements), *notes(benchmark)]
    text.append(f"\nVersions: {', '.join(f'{name} {version}' for name, version in libraries().items())}.\n")
    (output / "bench.md").write_text("".join(text), encoding="utf-8")
    everything = {
        "machine": machine(),
        "libraries": libraries(),
        "profile": profile,
        "seconds": seconds,
        "side_by_side": {
            "measurements": [asdict(each) for each in together.measurements()],
            "percentiles": PERCENTILES,
            "latency_ms": {count: together.percentiles_ms(count) for count in plots.LATENCY_CONNECTIONS},
        },
        "patterns": {each.pattern.number: [asdict(one) for one in each.measurements] for each in benchmarks},
        "skipped": {run.title: run.skipped for run in (together, *benchmarks) if run.skipped},
        "failed": {run.title: run.error for run in (together, *benchmarks) if run.error},
    }
    (output / "bench.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return [output / "bench.md", output / "bench.json", *drawn]
