"""The loss report ("ledger") of a chaos run: Markdown for readers, JSON for machines."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.chaos.harness import ChaosRun, Incident
from scripts.devstack.machine import described
from scripts.devstack.runs import Profile
from scripts.devstack.table import ROOT

ALERTS = ROOT / "docs/prove/alerts.json"
"""The last result of `make prove PROVE=alerts` that was committed."""
HEADER = """\
| pattern | faults injected | accepted | lost | done twice | stuck | failed answers | worst recovery |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""
EXPLAINED = """\
- **accepted**: requests sent (02, 06), jobs whose id was given out (03, 07), rows whose registration was confirmed
  (04).
- **lost**: accepted, and neither done nor refused. **done twice**: a result stored more than once; nothing is stored in
  02 and 06. **stuck**: not done at the end, or a fault after which things were not as before within a minute.
- **failed answers**: responses that a client should not have seen. While a process is down, responses that blame it are
  expected, and not counted here; the timelines have them in a column of their own.
- **recovery**: from the fault (or from its end, if it lasts) until every client's responses are as before, restart of
  the process included.
- **alert**: what such a fault fires, by the last `make prove PROVE=alerts SAMPLE=docs/prove`."""


def _listed(targets: Counter[str]) -> str:
    return ", ".join(f"{count} {target}" if len(targets) > 1 else target for target, count in targets.items())


def rows(runs: Sequence[ChaosRun]) -> Iterator[str]:
    """The table: a line for each pattern."""
    yield HEADER
    for run in runs:
        faults = [f"{targets.total()} {fault} ({_listed(targets)})" for fault, targets in run.faults.items()]
        zeros = (run.lost, run.twice, run.stuck, len(run.failed))
        cells = [run.title, ", ".join(faults) or "none", f"{run.accepted:,} {run.unit}"]
        cells += ["-" if zero is None else f"**{zero}**" for zero in zeros]
        yield f"| {' | '.join(cells)}{', ENDED EARLY' if run.error else ''} | {_seconds(run.worst_recovery_s)} |"


def _seconds(recovery_s: float | None) -> str:
    return "never" if recovery_s is None else f"{recovery_s:.1f} s"


def alerts_by_fault(path: Path = ALERTS) -> dict[tuple[str, str, str], str]:
    """What was fired by pattern, fault and process: "none", or the alerts of each variant of the fault."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for case in json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else ():
        fault, _, variant = case["fault"].partition(", ")
        names = ", ".join(alert.removesuffix(f" {case['pattern']}") for alert in case["fired"]) or "none"
        key = case["pattern"], fault, _kind(case["process"])
        found.setdefault(key, []).append(f"{variant}: {names}" if variant else names)
    return {key: "; ".join(variants) for key, variants in found.items()}


def alert_of(incident: Incident, number: str, known: Mapping[tuple[str, str, str], str]) -> str:
    """What this fault fires in the pattern of this number; the model server is 02's, garbage goes everywhere."""
    kind = _kind(incident.target)
    keys = ((number, incident.fault, kind), ("02", incident.fault, kind), ("all", incident.fault, "every port"))
    return next((known[key] for key in keys if key in known), "not tried")


def _kind(process: str) -> str:
    """06's services are alike."""
    return "service" if process.startswith("service_") else process


def markdown(runs: Sequence[ChaosRun], profile: Profile) -> Iterator[str]:
    """Lines: the table, what its columns mean, and a timeline of each pattern."""
    seconds = sum(run.seconds for run in runs)
    command = f"make prove{f' PROVE={profile}' if profile is not Profile.SHORT else ''}"
    yield f"# The ledger of a fault run\n\n`{command}` on {described()}; {seconds:.0f} s in all.\n"
    yield from (*rows(runs), "", EXPLAINED)
    known = alerts_by_fault()
    for run in runs:
        skipped = [f"Skipped: {reason}." for reason in run.skipped]
        yield f"\n## {run.title}\n"
        yield " ".join([f"A failed answer here: {run.failure}.", *run.remarks, *skipped])
        yield f"\n| at | fault | process | recovery | good answers meanwhile | {run.expected_label} | alert | |"
        yield "| ---: | --- | --- | ---: | ---: | ---: | --- | --- |"
        for incident in run.incidents:
            good, violations = run.during(incident)
            cells = [f"{incident.started - run.started:.1f} s", incident.fault, incident.target]
            cells += [_seconds(incident.recovery_s), f"{good:,}", f"{violations:,}"]
            cells += [alert_of(incident, run.pattern.number, known), incident.note]
            yield f"| {' | '.join(cells)} |"


def as_dict(run: ChaosRun) -> dict[str, Any]:
    """Every number of the Markdown, and the failed responses."""
    known = alerts_by_fault()
    incidents = [
        {
            "at_s": incident.started - run.started,
            "fault": incident.fault,
            "process": incident.target,
            "recovery_s": incident.recovery_s,
            "alert": alert_of(incident, run.pattern.number, known),
            "note": incident.note,
        }
        for incident in run.incidents
    ]
    same = ("faults", "unit", "accepted", "lost", "stuck", "worst_recovery_s", "seconds", "error", "skipped", "remarks")
    return {
        "pattern": run.pattern.number,
        "title": run.pattern.title,
        "passed": run.is_passed,
        **{name: getattr(run, name) for name in same},
        "done_twice": run.twice,
        "failed_answers": len(run.failed),
        "refused_answers": run.expected,
        "failures": [result.violation.text for result in run.failed[:100] if result.violation],
        "incidents": incidents,
    }


def write(runs: Sequence[ChaosRun], folder: Path, profile: Profile) -> list[Path]:
    """Write ledger.md and ledger.json; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": described(), "profile": profile, "patterns": [as_dict(run) for run in runs]}
    texts = {"ledger.md": "\n".join(markdown(runs, profile)), "ledger.json": json.dumps(content, indent=2)}
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    return [folder / name for name in texts]
