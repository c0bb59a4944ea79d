"""The loss report ("ledger") of a chaos run: a table for the terminal, Markdown for readers, JSON for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Column, Table

from scripts.devstack.machine import described
from scripts.devstack.runs import Profile

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scripts.chaos.harness import ChaosRun, Incident

COLUMNS = ("pattern", "faults injected", "accepted", "lost", "done twice", "stuck", "failed answers", "worst recovery")
EXPLAINED = """\
- **accepted**: requests sent (02, 06), jobs whose id was given out (03, 07), rows whose registration was confirmed
  (04).
- **lost**: accepted, and neither done nor refused. **done twice**: a result stored more than once; nothing is stored in
  02 and 06. **stuck**: not done at the end, or a fault after which things were not as before within a minute.
- **failed answers**: responses that a client should not have seen. While a process is down, responses that blame it are
  expected, and not counted here; the timelines have them in a column of their own.
- **recovery**: from the fault (or from its end, if it lasts) until every client's responses are as before, restart of
  the process included."""


def row(run: ChaosRun, *, names_targets: bool) -> tuple[str, ...]:
    """The cells of one pattern; on a terminal, the timeline above has named the targets."""
    faults = ", ".join(
        f"{targets.total()} {fault}" + (f" ({_listed(targets)})" if names_targets else "")
        for fault, targets in run.faults.items()
    )
    recovery = run.worst_recovery_s
    return (
        run.title,
        faults or "none",
        f"{run.accepted:,} {run.unit}",
        str(run.lost),
        "-" if run.twice is None else str(run.twice),
        str(run.stuck),
        str(len(run.failed)) + (", ENDED EARLY" if run.error else ""),
        "NEVER" if recovery is None else f"{recovery:.1f} s",
    )


def _listed(targets: Counter[str]) -> str:
    return ", ".join(f"{count} {target}" if len(targets) > 1 else target for target, count in targets.items())


def report_table(runs: Sequence[ChaosRun]) -> Table:
    """For the terminal; a line that does not pass is red."""
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS), title="The ledger", box=box.ASCII2)
    for run in runs:
        table.add_row(*row(run, names_targets=False), style="green" if run.is_passed else "bold red")
    return table


def markdown(runs: Sequence[ChaosRun], profile: Profile) -> Iterator[str]:
    """Lines: the table, what its columns mean, and a timeline of each pattern."""
    seconds = sum(run.seconds for run in runs)
    command = f"make prove{f' PROVE={profile}' if profile is not Profile.SHORT else ''}"
    yield from ("# The ledger of a fault run", "")
    yield from (f"`{command}` on {described()}; {seconds:.0f} s in all.", "")
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for run in runs:
        cells = row(run, names_targets=True)
        bold = (f"**{cell}**" if cell != "-" else cell for cell in cells[3:7])
        yield f"| {' | '.join((*cells[:3], *bold, cells[7]))} |"
    yield from ("", EXPLAINED)
    for run in runs:
        skipped = [f"Skipped: {reason}." for reason in run.skipped]
        yield from ("", f"## {run.title}", "")
        yield from (" ".join([f"A failed answer here: {run.failure}.", *run.remarks, *skipped]), "")
        yield f"| at | fault | process | recovery | good answers meanwhile | {run.expected_label} | |"
        yield "| ---: | --- | --- | ---: | ---: | ---: | --- |"
        for incident in run.incidents:
            yield f"| {' | '.join(_timeline_cells(run, incident))} |"


def _timeline_cells(run: ChaosRun, incident: Incident) -> tuple[str, ...]:
    good, violations = run.during(incident)
    return (
        f"{incident.started - run.started:.1f} s",
        incident.fault,
        incident.target,
        "never" if incident.recovery_s is None else f"{incident.recovery_s:.1f} s",
        f"{good:,}",
        f"{violations:,}",
        incident.note,
    )


def as_json(runs: Sequence[ChaosRun], profile: Profile) -> str:
    """Every number of the Markdown, and the failed responses."""
    patterns = [
        {
            "pattern": run.pattern.number,
            "title": run.pattern.title,
            "passed": run.is_passed,
            "faults": run.faults,
            "unit": run.unit,
            "accepted": run.accepted,
            "lost": run.lost,
            "done_twice": run.twice,
            "stuck": run.stuck,
            "failed_answers": len(run.failed),
            "refused_answers": run.expected,
            "worst_recovery_s": run.worst_recovery_s,
            "seconds": run.seconds,
            "error": run.error,
            "skipped": run.skipped,
            "remarks": run.remarks,
            "failures": [result.violation.text for result in run.failed[:100] if result.violation],
            "incidents": [
                {
                    "at_s": incident.started - run.started,
                    "fault": incident.fault,
                    "process": incident.target,
                    "recovery_s": incident.recovery_s,
                    "note": incident.note,
                }
                for incident in run.incidents
            ],
        }
        for run in runs
    ]
    return json.dumps({"machine": described(), "profile": profile, "patterns": patterns}, indent=2)


def write(runs: Sequence[ChaosRun], folder: Path, profile: Profile) -> list[Path]:
    """Write ledger.md and ledger.json; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"ledger.md": "\n".join(markdown(runs, profile)), "ledger.json": as_json(runs, profile)}
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]
