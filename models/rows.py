"""The CSV file of models.add: names, ranges and labels of columns from a header and rows."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from models.card import Column
from models.files import BuildError

MAX_BYTES = 100 * 1024 * 1024
TRUTH = {"true": 1, "false": 0}
MISSING = ("", "nan", "null", "none", "na", "n/a")
# Rows from which on a column's values say what others will be.
MANY_ROWS = 100
MAX_CATEGORIES, ROWS_PER_CATEGORY = 20, 5
FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True)
class Table:
    path: Path
    header: list[str]
    rows: list[list[str]]

    def column(self, name: str) -> list[str]:
        index = self.header.index(name)
        return [row[index] for row in self.rows]


def read(path: Path) -> Table:
    """The CSV file. Raises BuildError with the line that is wrong."""
    if path.stat().st_size > MAX_BYTES:
        raise BuildError(f"{path} is larger than {MAX_BYTES:,} bytes (some thousand rows are enough)")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as exc:
        raise BuildError(f"{path} is not a CSV file in UTF-8: {exc} (save it as one)") from exc
    if not rows:
        raise BuildError(f"{path} has no rows (give a header and at least one row)")
    if len(set(header)) < len(header) or "" in header:
        raise BuildError(f"{path} has a column without a name, or a name twice (its first line must name each column)")
    for number, row in enumerate(rows):
        if len(row) != len(header):
            raise BuildError(
                f"{path}, row {number}: {len(row)} values, but the header has {len(header)} (mend the row)"
            )
    return Table(path, header, rows)


def describe(
    columns: Sequence[Column], table: Table, target: str | None
) -> tuple[list[Column], list[Any] | None, list[str]]:
    """The columns with names, ranges and values of the table; the values of the target; and notes."""
    if target is not None and target not in table.header:
        raise BuildError(f"{table.path} has no column {target} (it has {', '.join(table.header)})")
    names = [name for name in table.header if name != target]
    if {column.name for column in columns} <= set(names):
        chosen = [column.name for column in columns]
        left = [name for name in names if name not in chosen]
    else:
        chosen, left = names[: len(columns)], names[len(columns) :]
        if len(chosen) < len(columns) or len(left) > 1:
            raise BuildError(
                f"{table.path} has {len(names)} columns, the model takes {len(columns)} "
                "(give its columns in order, and no other but the target)"
            )
    if target is None and len(left) == 1:
        target = left[0]
    notes = [f"columns of the CSV file that are no inputs: {', '.join(filter(None, {*left, target}))}"] if left else []
    described = [_described(column, name, table) for column, name in zip(columns, chosen, strict=True)]
    values = None
    if target is not None:
        values = [_number(cell) if _is_number(cell) else cell for cell in table.column(target)]
    if any(column.low is not None for column in described):
        spans = 1 if len(table.rows) >= MANY_ROWS else 10
        notes.append(f"ranges are those of {len(table.rows)} rows, wider by {spans} times their span (edit model.toml)")
    return described, values, notes


def _described(column: Column, name: str, table: Table) -> Column:
    cells = table.column(name)
    values = [_parse(cell, column.dtype, f"{table.path}, row {row}: {name}") for row, cell in enumerate(cells)]
    if column.dtype == "string":
        distinct = sorted(set(values))
        is_category = len(distinct) <= MAX_CATEGORIES and len(values) >= ROWS_PER_CATEGORY * len(distinct)
        return replace(column, name=name, values=values, allowed=distinct if is_category else None)
    if column.dtype == "bool":
        return replace(column, name=name, values=values)
    present = [value for value in values if not math.isnan(value)]
    low = high = None
    if present and max(present) > min(present):
        span = max(present) - min(present)
        is_many = len(table.rows) >= MANY_ROWS
        low, high = min(present) - span * (1 if is_many else 10), max(present) + span * (1 if is_many else 10)
        if is_many and min(present) >= 0:
            low = max(low, 0)
        low, high = (None, None) if max(abs(low), abs(high)) > FLOAT32_MAX else (float(low), float(high))
    is_nullable = len(present) < len(values)
    return replace(column, name=name, values=values, low=low, high=high, is_nullable=is_nullable)


def _parse(cell: str, dtype: str, place: str) -> Any:
    if dtype == "string":
        return cell
    if dtype == "bool":
        if cell.lower() in ("true", "1", "yes", "false", "0", "no"):
            return cell.lower() in ("true", "1", "yes")
        raise BuildError(f"{place} is {cell!r}, not true or false (mend the file, or export the model with a string)")
    if cell.lower() in MISSING:
        if dtype == "float32":
            return math.nan
        raise BuildError(f"{place} is missing, which an integer cannot be (fill it, or export the model with floats)")
    if cell.lower() in TRUTH:  # as pandas writes the booleans that a model of numbers was fitted to
        cell = str(TRUTH[cell.lower()])
    if not _is_number(cell):
        raise BuildError(f"{place} is {cell!r}, but the model takes {dtype} (put the model's columns in its order)")
    value = _number(cell)
    if not math.isfinite(value) or abs(value) > FLOAT32_MAX:
        raise BuildError(f"{place} is {cell}, which is not finite (leave that row out)")
    if dtype == "int64":
        if value != int(value):
            raise BuildError(f"{place} is {cell}, but the model takes integers (export the model with floats)")
        return int(value)
    return float(value)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str) -> float | int:
    try:
        return int(cell)
    except ValueError:
        return float(cell)
