"""Makes Grafana's dashboards from dashboards.toml: grafana/dashboards/*.json.

python -m deploy.observability.dashboards            # are they up to date?
python -m deploy.observability.dashboards --write
"""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from deploy.observability.generated import keep

HERE = Path(__file__).parent
FOLDER = HERE / "grafana/dashboards"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}  # of grafana/provisioning/datasources
WIDTH, HEIGHT, COLUMNS = 8, 7, 3  # Grafana's grid has 24 columns


def panel(source: dict[str, Any], number: int, fill: dict[str, str]) -> dict[str, Any]:
    """One time series panel, at its place of the grid."""

    def filled(text: str) -> str:
        # Not str.format: braces belong to the query language and to Grafana's legends.
        for name, value in fill.items():
            text = text.replace(f"{{{name}}}", value)
        return text

    targets = [
        {"refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": filled(query), "legendFormat": legend}
        for index, (legend, query) in enumerate(source["queries"].items())
    ]
    place = {"x": number % COLUMNS * WIDTH, "y": number // COLUMNS * HEIGHT, "w": WIDTH, "h": HEIGHT}
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": filled(source["title"]),
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": source["unit"], "min": 0}, "overrides": []},
        "targets": targets,
    }


def dashboards() -> dict[str, dict[str, Any]]:
    """Every dashboard, as Grafana's JSON model, by its uid."""
    source = tomllib.loads((HERE / "dashboards.toml").read_text(encoding="utf-8"))
    made = {}
    for each in source["dashboard"]:
        fill = {name: each[name] for name in ("pattern", "front") if name in each}
        panels = [*(source["shared"][name] for name in each.get("shared", [])), *each["panel"]]
        made[each["uid"]] = {
            "uid": each["uid"],
            "title": each["title"],
            "tags": ["serving-patterns"],
            "schemaVersion": 39,
            "editable": False,
            "refresh": "10s",
            "time": {"from": "now-30m", "to": "now"},
            # Their other dashboards, in every dashboard's head.
            "links": [{"type": "dashboards", "tags": ["serving-patterns"], "title": "Patterns", "asDropdown": True}],
            "panels": [panel(one, number, fill) for number, one in enumerate(panels)],
        }
    return made


def queries() -> list[tuple[str, str, str]]:
    """(dashboard, panel, query) of every line of every panel."""
    return [
        (uid, panel["title"], target["expr"])
        for uid, dashboard in dashboards().items()
        for panel in dashboard["panels"]
        for target in panel["targets"]
    ]


def files() -> dict[Path, str]:
    """The content of every JSON file."""
    return {FOLDER / f"{uid}.json": json.dumps(made, indent=1) + "\n" for uid, made in dashboards().items()}


if __name__ == "__main__":
    sys.exit(keep(files(), FOLDER, "*.json", sys.argv[1:]))
