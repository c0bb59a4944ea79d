"""The report of `make bench`: tables in bench.md, everything in bench.json, and the plots."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from scripts.benchmarks import plots
from scripts.benchmarks.harness import Benchmark, Measurement
from scripts.benchmarks.side_by_side import PERCENTILES, SideBySide
from scripts.devstack.machine import described, libraries, machine
from scripts.devstack.runs import PatternRun, Profile

INTRODUCTION = """\
Everything ran on one machine, the load generator included: what takes turns in one run can be compared, and ratios
hold elsewhere. Absolute figures are this machine's.
"""


def markdown(measurements: Iterable[Measurement]) -> str:
    """A heading and a table for each group."""
    groups: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        groups.setdefault(measurement.group, []).append(measurement)
    lines = []
    for group, found in groups.items():
        measures = list(dict.fromkeys(each.measure for each in found))
        targets = ["target"] if any(each.target for each in found) else []
        lines += ["", f"### {group}", "", f"| {' | '.join(['', *measures, *targets])} |"]
        lines.append(f"| --- {'| ---: ' * len(measures + targets)}|")
        for what in dict.fromkeys(each.what for each in found):
            cells = {each.measure: each for each in found if each.what == what}
            row = [what, *(cells[measure].text if measure in cells else "" for measure in measures)]
            row += [", ".join(each.target for each in cells.values() if each.target)] if targets else []
            lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines) + "\n"


def section(run: Benchmark | SideBySide, heading: str) -> str:
    """What was measured, and what was not, with the reasons."""
    notes = [*(f"Skipped: {reason}." for reason in run.skipped), *([run.error] if run.error else [])]
    return f"\n## {heading}\n{markdown(run.measurements)}" + "".join(f"\n{note}\n" for note in notes)


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
    text += [section(together, "Side by side"), *(section(benchmark, benchmark.title) for benchmark in benchmarks)]
    text.append(f"\nVersions: {', '.join(f'{name} {version}' for name, version in libraries().items())}.\n")
    (output / "bench.md").write_text("".join(text), encoding="utf-8")
    everything = facts([together, *benchmarks], profile, seconds) | {
        "side_by_side": {
            "measurements": [asdict(each) for each in together.measurements],
            "percentiles": PERCENTILES,
            "latency_ms": {count: together.percentiles_ms(count) for count in plots.LATENCY_CONNECTIONS},
        },
        "patterns": {each.pattern.number: [asdict(one) for one in each.measurements] for each in benchmarks},
    }
    (output / "bench.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return [output / "bench.md", output / "bench.json", *drawn]


def facts(runs: Sequence[PatternRun], profile: Profile, seconds: float) -> dict[str, object]:
    """Where and how a run was made, and what could not be: goes into every JSON file."""
    return {
        "machine": machine(),
        "libraries": libraries(),
        "profile": profile,
        "seconds": seconds,
        "skipped": {run.title: run.skipped for run in runs if run.skipped},
        "failed": {run.title: run.error for run in runs if run.error},
    }
