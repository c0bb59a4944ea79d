"""The ledger of a fault run: for the terminal, as Markdown for a README, as JSON for machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rich import box
from rich.table import Column, Table

from scripts.chaos.proof import Form
from scripts.devstack.machine import described

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scripts.chaos.proof import Incident, Proof

COLUMNS = ("pattern", "faults injected", "accepted", "lost", "done twice", "stuck", "failed answers", "worst recovery")
EXPLAINED = """\
- **accepted**: requests sent (02, 06), jobs whose id was given out (03, 07), rows whose registration was confirmed
  (04).
- **lost**: accepted, and neither done nor refused. **done twice**: a result stored more than once; nothing is stored in
  02 and 06. **stuck**: not done at the end, or a fault after which things were not as before within a minute.
- **failed answers**: what a client should not have seen. While a process is ill, answers that lay the blame on it are
  expected, and are not counted here; the timelines have them in a column of their own.
- **recovery**: from the fault (or from its end, if it lasts) until every client's answers are as before, restart of the
  process included."""


def row(proof: Proof, *, names_targets: bool) -> tuple[str, ...]:
    """The cells of one pattern; on a terminal, the timeline above has told who was hit."""
    faults = ", ".join(
        f"{targets.total()} {fault}" + (f" ({_listed(targets)})" if names_targets else "")
        for fault, targets in proof.faults.items()
    )
    recovery = proof.worst_recovery_s
    return (
        f"{proof.number} {proof.title}",
        faults or "none",
        f"{proof.accepted:,} {proof.unit}",
        str(proof.lost),
        "-" if proof.twice is None else str(proof.twice),
        str(proof.stuck),
        str(len(proof.failed)) + (", BROKE OFF" if proof.error else ""),
        "NEVER" if recovery is None else f"{recovery:.1f} s",
    )


def _listed(targets: Counter[str]) -> str:
    return ", ".join(f"{count} {target}" if len(targets) > 1 else target for target, count in targets.items())


def ledger_table(proofs: Sequence[Proof]) -> Table:
    """For the terminal; a line that does not hold is red."""
    table = Table(*(Column(name, overflow="fold") for name in COLUMNS), title="The ledger", box=box.ASCII2)
    for proof in proofs:
        table.add_row(*row(proof, names_targets=False), style="green" if proof.is_kept else "bold red")
    return table


def markdown(proofs: Sequence[Proof], *, form: Form) -> str:
    """The ledger, what its columns mean, and a timeline of each pattern."""
    return "\n".join(_lines(proofs, form=form)) + "\n"


def _lines(proofs: Sequence[Proof], *, form: Form) -> Iterator[str]:
    seconds = sum(proof.seconds for proof in proofs)
    yield "# The ledger of a fault run"
    yield ""
    yield f"`make prove{f' PROVE={form}' if form is not Form.SHORT else ''}` on {described()}; {seconds:.0f} s in all."
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for proof in proofs:
        cells = row(proof, names_targets=True)
        yield f"| {' | '.join((cells[0], cells[1], cells[2], *(_strong(cell) for cell in cells[3:7]), cells[7]))} |"
    yield ""
    yield EXPLAINED
    for proof in proofs:
        yield ""
        yield f"## {proof.number} {proof.title}"
        yield ""
        yield " ".join([f"A failed answer here: {proof.failure}.", *proof.remarks])
        yield ""
        yield f"| at | fault | process | recovery | good answers meanwhile | {proof.forgiven} | |"
        yield "| ---: | --- | --- | ---: | ---: | ---: | --- |"
        for incident in proof.incidents:
            yield f"| {' | '.join(_timeline_cells(proof, incident))} |"


def _strong(cell: str) -> str:
    return f"**{cell}**" if cell != "-" else cell


def _timeline_cells(proof: Proof, incident: Incident) -> tuple[str, ...]:
    good, refused = proof.meanwhile(incident)
    return (
        f"{incident.started - proof.started:.1f} s",
        incident.fault,
        incident.target,
        "never" if incident.recovery_s is None else f"{incident.recovery_s:.1f} s",
        f"{good:,}",
        f"{refused:,}",
        incident.note,
    )


def as_json(proofs: Sequence[Proof], *, form: Form) -> str:
    """Every figure of the Markdown, and the failed answers."""
    return json.dumps(
        {
            "machine": described(),
            "form": form,
            "patterns": [
                {
                    "pattern": proof.number,
                    "title": proof.title,
                    "kept": proof.is_kept,
                    "faults": proof.faults,
                    "unit": proof.unit,
                    "accepted": proof.accepted,
                    "lost": proof.lost,
                    "done_twice": proof.twice,
                    "stuck": proof.stuck,
                    "failed_answers": len(proof.failed),
                    "refused_answers": proof.refused,
                    "worst_recovery_s": proof.worst_recovery_s,
                    "seconds": proof.seconds,
                    "error": proof.error,
                    "remarks": proof.remarks,
                    "failures": [answer.problem.text for answer in proof.failed[:100] if answer.problem],
                    "incidents": [
                        {
                            "at_s": incident.started - proof.started,
                            "fault": incident.fault,
                            "process": incident.target,
                            "recovery_s": incident.recovery_s,
                            "note": incident.note,
                        }
                        for incident in proof.incidents
                    ],
                }
                for proof in proofs
            ],
        },
        indent=2,
    )


def write(proofs: Sequence[Proof], folder: Path, *, form: Form) -> list[Path]:
    """Write ledger.md and ledger.json; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"ledger.md": markdown(proofs, form=form), "ledger.json": as_json(proofs, form=form) + "\n"}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
