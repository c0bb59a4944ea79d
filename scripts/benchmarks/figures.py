"""What a benchmark has found: figures, and the one way to print them and to write them down."""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from scripts.devstack.machine import described

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from scripts.benchmarks.load import Load

WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: of what, which measure of it, in which unit, and the bound that it should keep."""

    group: str
    """Of figures that stand in one table."""
    what: str
    """A row of it, as "the proxy, 16 connections"."""
    measure: str
    """A column of it, as "p99"."""
    value: float
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the bound is kept; None without one."""
        if self.at_least is None and self.at_most is None:
            return None
        low = float("-inf") if self.at_least is None else self.at_least
        return low <= self.value <= (float("inf") if self.at_most is None else self.at_most)

    @property
    def text(self) -> str:
        """Value and unit, to three digits; a bound that is not kept is said in capitals."""
        value = f"{self.value:,.0f}" if abs(self.value) >= 100 else f"{self.value:.3g}"
        return f"{value} {self.unit}".strip() + (" MISSED" if self.is_met is False else "")

    @property
    def bound(self) -> str:
        """As "at least 0.5"; empty without one."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def of_load(group: str, what: str, *loads: Load, p99_at_most: float | None = None) -> list[Figure]:
    """Medians over the rounds: answers per second, latencies, and failures if there were any."""
    figures = [
        Figure(group=group, what=what, measure="rate", value=statistics.median(load.rate for load in loads), unit="/s")
    ]
    for percent in (50, 99):
        seconds = statistics.median(load.percentile(percent) for load in loads)
        bound = p99_at_most if percent == 99 else None
        figures.append(
            Figure(group=group, what=what, measure=f"p{percent}", value=seconds * 1000, unit="ms", at_most=bound)
        )
    if failed := sum(load.failed for load in loads):
        figures.append(Figure(group=group, what=what, measure="failed", value=failed, at_most=0))
    return figures


def tables(figures: Iterable[Figure]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """The figures as tables: group, columns, rows."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    for group, of_group in groups.items():
        measures = list(dict.fromkeys(figure.measure for figure in of_group))
        has_bounds = any(figure.bound for figure in of_group)
        rows = []
        for what in dict.fromkeys(figure.what for figure in of_group):
            cells = {figure.measure: figure for figure in of_group if figure.what == what}
            row = [what, *(cells[measure].text if measure in cells else "" for measure in measures)]
            bounds = ", ".join(figure.bound for figure in cells.values() if figure.bound)
            rows.append([*row, bounds] if has_bounds else row)
        yield group, ["", *measures, *(["target"] if has_bounds else [])], rows


def markdown(figures: Iterable[Figure]) -> str:
    """A heading and a table for each group."""
    lines = []
    for group, columns, rows in tables(figures):
        marks = ["---", *("---:" for _ in columns[1:])]
        lines += ["", f"### {group}", "", *(f"| {' | '.join(row)} |" for row in (columns, marks, *rows))]
    return "\n".join(lines) + "\n"


def add_output(parser: argparse.ArgumentParser) -> None:
    """The option that every benchmark has."""
    parser.add_argument("--json", type=Path, help="also write the figures to this file")


def report(figures: Sequence[Figure], to: Path | None) -> None:
    """Print the figures, and write them if a file is named."""
    console = Console(width=WIDTH)
    console.print(described())
    for group, columns, rows in tables(figures):
        table = Table(*columns, title=group, title_justify="left", box=box.MARKDOWN)
        for row in rows:
            table.add_row(*row)
        console.print(table)
    if to is not None:
        to.write_text(json.dumps([asdict(figure) for figure in figures]), encoding="utf-8")


def read(path: Path) -> list[Figure]:
    """What `report` has written."""
    return [Figure(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
