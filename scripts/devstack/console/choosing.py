"""The choosing guide as a function: what is wanted, and which patterns have it, with measured figures."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scripts.devstack.table import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

# Of this machine if there are any, else those that the READMEs show.
RESULTS = (ROOT / "bench-results/bench.json", ROOT / "docs/bench/bench.json")
BATCH_WITHIN_S = 60
# Rows of the comparison of all patterns under the same load, by pattern.
ROWS = {
    "02": "02 prediction (REST)",
    "03": "03 job id",
    "04": "04 registration",
    "06": "06 prediction",
    "07": "07 fast answer",
}


def results(paths: tuple[Path, ...] = RESULTS) -> dict[str, Any]:
    """The newest results that compare all patterns: `machine`, `measured` on it, and `figures` by pattern.

    Figures: p50_ms and p99_ms of one caller at a time, and the highest rate, in requests/s.
    """
    for path in paths:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            measured = {
                (each["what"], each["measure"]): each["value"] for each in content["side_by_side"]["measurements"]
            }
            figures = {
                number: {
                    "p50_ms": measured[f"{row}, 1 connection", "p50"],
                    "p99_ms": measured[f"{row}, 1 connection", "p99"],
                    "rate": max(
                        value for (what, measure), value in measured.items()
                        if measure == "rate" and what.startswith(f"{row}, ")
                    ),
                }
                for number, row in ROWS.items()
            }  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError):
            continue  # there is none, or it measured some patterns only
        about = content["machine"]
        source = "make bench here" if path == RESULTS[0] else "the committed run of make bench, of another machine"
        machine = f"{about['cpu']}, {about['cores']} cores, {about['date']}"
        return {"machine": machine, "source": source, "cores": about["cores"], "figures": figures}
    raise FileNotFoundError("there are no results of make bench for all patterns")


@dataclass(frozen=True)
class Requirements:
    """The questions of docs/choosing.md."""

    model_ms: float
    """One run of the model."""
    wait_s: float
    """How long the caller may wait for the answer."""
    rate: float
    """Requests/s that have to be served."""
    lossless: bool = False
    """Whether every request must be done, if later, also when something dies."""
    poorer: bool = False
    """Whether a poorer answer at once would be of use."""
    several: bool = False
    """Whether several models answer the same input."""


def choose(wanted: Requirements, bench: Mapping[str, Any]) -> dict[str, Any]:
    """The pattern that fits best, and what speaks against each, with the figures of `results`."""
    figures, cores = bench["figures"], bench["cores"]
    model_ms, wait_s, several, lossless = wanted.model_ms, wanted.wait_s, wanted.several, wanted.lossless
    takes_s = {number: (figures[number]["p99_ms"] + model_ms) / 1000 for number in figures}
    at_once = "06" if several else "02"
    in_time = takes_s[at_once] <= wait_s
    fast_in_time = wanted.poorer and figures["07"]["p99_ms"] / 1000 <= wait_s
    if wait_s >= BATCH_WITHIN_S:
        best = "04"
    elif lossless:
        best = "03"
    elif in_time:
        best = at_once
    else:
        best = "07" if fast_in_time else "03"

    slow = (
        f"The model and the 99th percentile measured here take {takes_s[at_once]:.3g} s; the caller waits {wait_s:g} s."
    )
    sync = "A request dies with the process that computes it: the caller has to retry." if lossless else ""
    other = "Several models: 06 calls them in parallel." if several else "One model: 02 has fewer parts."
    against = {
        "02": sync or (other if several else "") or ("" if in_time else slow),
        "03": "" if lossless or not in_time else "The caller can wait: 02 and 06 need no second request.",
        "04": "" if wait_s >= BATCH_WITHIN_S else f"The next run is up to {BATCH_WITHIN_S} s away.",
        "06": sync or ("" if several else other) or ("" if in_time else slow),
        "07": "" if fast_in_time and not in_time else "Two models cost more than one that is fast enough."
        if in_time else "A poorer answer at once would have to be of use, and in time.",
    }  # fmt: skip
    if best == "04":
        nobody = "Nobody waits for a single answer: in 04 a row costs almost nothing."
        against |= {number: nobody for number, reason in against.items() if not reason and number != best}
    patterns = {}
    for number, figure in figures.items():
        runs = 3 if number == "06" else 1
        capacity = min(figure["rate"], 1000 * cores / (runs * model_ms)) if model_ms else figure["rate"]
        patterns[number] = figure | {
            "against": against[number],
            "capacity": capacity,
            "machines": max(1, -(-wanted.rate // capacity)),
        }
    return {"best": best, "patterns": patterns, "machine": bench["machine"], "source": bench["source"]}
