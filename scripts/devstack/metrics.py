"""Prometheus beside the patterns, with the rules of deploy/observability: `make up METRICS=1`."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from scripts.devstack.table import HOST, ROOT, Pattern, ProcessDefinition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from scripts.devstack.stack import DevStack

NUMBER = "metrics"
"""Where the number of a pattern stands for the others."""
MISSING = (
    "METRICS=1 needs prometheus on PATH, which is not there: apt install prometheus (Debian, Ubuntu), "
    "brew install prometheus (macOS), or https://prometheus.io/download/"
)
RULES = tuple(sorted((ROOT / "deploy/observability/rules").glob("*.yml")))


def with_prometheus(table: Mapping[str, Pattern]) -> dict[str, Pattern]:
    """The patterns and a Prometheus, which `configure` prepares; the patterns alone where the program is missing."""
    if (binary := shutil.which("prometheus")) is None:
        return dict(table)
    prometheus = ProcessDefinition(
        name="prometheus",
        argv=(
            *(binary, "--config.file={state}.json", "--storage.tsdb.path={state}", "--log.level=warn"),
            f"--web.listen-address={HOST}:{{PORT_PROMETHEUS}}",
        ),
        ports={"PORT_PROMETHEUS": 9090},
        ready=f"http://{HOST}:{{PORT_PROMETHEUS}}/-/ready",
    )
    return dict(table) | {NUMBER: Pattern(number=NUMBER, title="Prometheus", folder=".", processes=(prometheus,))}


def configure(stack: DevStack, run_dir: Path, *, rules: Iterable[Path] = RULES, interval: str = "5s") -> None:
    """Write what the stack's Prometheus scrapes, before the stack starts.

    Args:
        run_dir: that of the stack.
        rules: files with recording rules and alerts.
        interval: between two scrapes, and two evaluations of the rules.
    """
    jobs = []
    for managed in stack.processes:
        if page := managed.definition.metrics:
            at = urlsplit(page.format_map(stack.ports))
            pattern, _, process = managed.id.partition("-")
            target = {"targets": [at.netloc], "labels": {"pattern": pattern, "process": process}}
            jobs.append({"job_name": managed.id, "metrics_path": at.path, "static_configs": [target]})
    content = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": jobs,
    }
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / f"{NUMBER}.json").write_text(json.dumps(content, indent=1), encoding="utf-8")  # which is YAML, too
