"""Shared by both clients: the classes, a prediction, and the command line."""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

CLASSES = ("setosa", "versicolor", "virginica")
FEATURES = 4
TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class IrisPrediction:
    """The most probable class of one flower, and the probability of each class in the order of CLASSES."""

    label: str
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, probabilities: Sequence[float]) -> IrisPrediction:
        """From the probabilities of one row, in the order of CLASSES."""
        return cls(CLASSES[max(range(len(CLASSES)), key=probabilities.__getitem__)], tuple(probabilities))


class PredictionError(Exception):
    """The server is unreachable or rejected the request; str() is the reason in one line."""


class IrisClient(Protocol):
    """Either client, as the command line uses it."""

    def predict(self, rows: Sequence[Sequence[float]]) -> list[IrisPrediction]: ...


def backoff_s(attempt: int) -> float:
    """Seconds to wait before the next attempt: 0.1, doubled each time, at most 2."""
    return min(0.1 * 2.0**attempt, 2.0)


def trace_headers() -> dict[str, str]:
    """W3C `traceparent`, with which the server continues the caller's trace; empty without one.

    It is that of the current span in a program that uses OpenTelemetry, else TRACEPARENT of the environment.
    """
    headers: dict[str, str] = {}
    # 使っていないプログラムのために読み込むことはしない。
    if "opentelemetry.trace" in sys.modules:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(headers)
    given = os.environ.get("TRACEPARENT", "")
    return headers or ({"traceparent": given} if TRACEPARENT.fullmatch(given) else {})


def run(
    description: str,
    default_address: str,
    connect: Callable[[argparse.Namespace], AbstractContextManager[IrisClient]],
    arguments: Sequence[str] | None = None,
) -> None:
    """The command line of both clients. Errors are one line on standard error and exit code 1."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("values", nargs="*", type=float, help="four numbers (cm) for each flower")
    parser.add_argument("--file", type=Path, help="CSV file with four numbers in each line; a header is skipped")
    parser.add_argument("--address", default=default_address, help="address of the server (default: %(default)s)")
    parser.add_argument("--model", default="iris", help="name of the model (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for the whole call (default: %(default)s)")
    parser.add_argument(
        "--retries", type=int, default=3, help="retries if unavailable; over gRPC at most 4 (default: %(default)s)"
    )
    parser.add_argument("--ca", type=Path, help="PEM file of a certificate authority; turns on TLS")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        rows = [*_group(options.values), *(_read_csv(options.file) if options.file else [])]
        if not rows:
            parser.error("give four numbers for each flower, or --file")
        for value in chain.from_iterable(rows):
            # NaN はどの比較も成り立たないので、これで除かれる。
            if not abs(value) <= FLOAT32_MAX:
                raise ValueError(f"{value:g} is not a finite 32-bit number")
        with connect(options) as client:
            predictions = client.predict(rows)
    except (PredictionError, OSError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    for row, prediction in zip(rows, predictions, strict=True):
        if options.json:
            print(json.dumps({"input": row, **asdict(prediction)}))  # noqa: T201 コマンドの出力
        else:
            chances = "  ".join(f"{name} {p:.4f}" for name, p in zip(CLASSES, prediction.probabilities, strict=True))
            print(f"{prediction.label:<10}  {chances}")  # noqa: T201


def _group(values: Sequence[float]) -> list[tuple[float, ...]]:
    if len(values) % FEATURES:
        raise ValueError(f"{len(values)} numbers are not a multiple of {FEATURES}")
    return [tuple(values[start : start + FEATURES]) for start in range(0, len(values), FEATURES)]


def _read_csv(path: Path) -> list[tuple[float, ...]]:
    """The first four columns of each line. Further columns, as in the usual iris.csv, are ignored."""
    rows = []
    # 表計算ソフトは先頭に BOM を付ける。
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            try:
                row = tuple(float(cell) for cell in line[:FEATURES])
            except ValueError:
                if number == 1 and not any(map(_is_number, line[:FEATURES])):
                    continue
                raise ValueError(f"{path}: line {number} does not start with {FEATURES} numbers") from None
            if row and len(row) < FEATURES:
                raise ValueError(f"{path}: line {number} does not start with {FEATURES} numbers")
            if row:
                rows.append(row)
    return rows


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
