"""Compiles the objectives in slo/ to recording rules and multi-window burn-rate alerts: rules/slo_*.yml.

    python -m deploy.observability.slo            # are they up to date?
    python -m deploy.observability.slo --write

A burn rate of 1 uses up the error budget, 1 - objective, in exactly 30 days. The windows and rates are those of "The
Site Reliability Workbook", chapter 5: the long window keeps a blip from alerting, the short one ends the alert soon
after the fault.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from deploy.observability.generated import keep

HERE = Path(__file__).parent
RUNBOOK = "docs/runbook.md"
# Suffix of the alert, severity; then long window, short window, burn rate of each of its conditions.
SPEEDS: tuple[tuple[str, str, tuple[tuple[str, str, float], ...]], ...] = (
    ("BurnsFast", "page", (("1h", "5m", 14.4), ("6h", "30m", 6))),
    ("BurnsSlowly", "ticket", (("1d", "2h", 3), ("3d", "6h", 1))),
)
# Bad events that use up the whole budget, however few the good ones are: among ten requests, one failure is 10 %, and
# wakes nobody. A window counts as many events as that takes, at least.
FEW = 5
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
HEADER = "# Written from slo/{name}.toml by `python -m deploy.observability.slo --write`; a test compares them.\n"


def ratio(slo: str, indicator: dict[str, Any], window: str, budget: float) -> str:
    """The share of bad events, or of bad moments, in a window: an expression without labels, empty without events."""
    if "value" in indicator:
        return f'avg_over_time(slo:is_bad{{slo="{slo}", pattern="{indicator["pattern"]}"}}[{window}])'
    total = f"sum(increase({indicator['total']}[{window}]))"
    if "good" in indicator:
        bad = f"{total} - sum(increase({indicator['good']}[{window}]))"
    else:  # before the first error there is no series of errors
        bad = f"sum(increase({indicator['bad']}[{window}])) or vector(0)"
    return f"({bad}) / clamp_min({total} > 0, {FEW / budget:.0f})"


def group(path: Path) -> dict[str, Any]:
    """The rules of one objective."""
    slo = path.stem
    source = tomllib.loads(path.read_text(encoding="utf-8"))
    budget = 1 - source["objective"]
    rules: list[dict[str, Any]] = []
    for indicator in source["indicator"]:
        labels = {"slo": slo, "pattern": indicator["pattern"]}
        if "value" in indicator:
            is_bad = f"{indicator['value']} > bool {indicator['above']}"
            rules.append({"record": "slo:is_bad", "expr": is_bad, "labels": dict(labels)})
        for window in WINDOWS:
            expr = ratio(slo, indicator, window, budget)
            rules.append({"record": f"slo:bad_ratio:{window}", "expr": expr, "labels": dict(labels)})
    for suffix, severity, conditions in SPEEDS:
        alert = "".join(word.title() for word in slo.split("_")) + suffix
        burning = (
            f'(slo:bad_ratio:{long}{{slo="{slo}"}} > {rate * budget:.6g}'
            f' and slo:bad_ratio:{short}{{slo="{slo}"}} > {rate * budget:.6g})'
            for long, short, rate in conditions
        )
        annotations = {
            "summary": source["summary"].format(pattern="{{ $labels.pattern }}"),
            "runbook": f"{RUNBOOK}#{alert.lower()}",
        }
        rule = {"alert": alert, "expr": " or ".join(burning), "labels": {"severity": severity}}
        rules.append(rule | {"annotations": annotations})
    return {"name": f"slo_{slo}", "rules": rules}


def files() -> dict[Path, str]:
    """The content of every file of rules."""
    return {
        HERE / f"rules/slo_{path.stem}.yml": HEADER.format(name=path.stem)
        + yaml.safe_dump({"groups": [group(path)]}, sort_keys=False, width=1_000)
        for path in sorted((HERE / "slo").glob("*.toml"))
    }


if __name__ == "__main__":
    sys.exit(keep(files(), HERE / "rules", "slo_*.yml", sys.argv[1:]))
