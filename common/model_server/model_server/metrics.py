"""Counters and histograms under TensorFlow Serving's names, so that its dashboards keep working."""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import TYPE_CHECKING

from .status import Code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# prometheus_client appends _total to every counter, and so cannot write TensorFlow Serving's names.
PREFIX = ":tensorflow:serving:"
# From 10 µs to about 20 minutes in steps of 1.8: the bounds of TensorFlow Serving.
LATENCY_BOUNDS_US = [10 * 1.8**power for power in range(33)]


class Counter:
    """A number that only grows, for each combination of label values."""

    kind = "counter"

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.text = PREFIX + name, text
        self._labels = labels
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], int] = {}

    def increment(self, *values: str) -> None:
        with self._lock:
            self._values[values] = self._values.get(values, 0) + 1

    def lines(self) -> Iterator[str]:
        with self._lock:
            points = dict(self._values)
        for values, count in points.items():
            yield f"{self.name}{{{_label_text(self._labels, values)}}} {count}"


class Histogram:
    """How many durations, in microseconds, fell below each bound, for each combination of label values."""

    kind = "histogram"

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self.name, self.text = PREFIX + name, text
        self._labels = labels
        self._lock = threading.Lock()
        self._points: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def observe(self, duration_us: float, *values: str) -> None:
        bucket = bisect_left(LATENCY_BOUNDS_US, duration_us)
        with self._lock:
            counts, total = self._points.setdefault(values, ([0] * (len(LATENCY_BOUNDS_US) + 1), [0.0]))
            counts[bucket] += 1
            total[0] += duration_us

    def lines(self) -> Iterator[str]:
        with self._lock:
            points = {values: (list(counts), total[0]) for values, (counts, total) in self._points.items()}
        for values, (counts, total) in points.items():
            labels = _label_text(self._labels, values)
            cumulative = 0
            for bound, count in zip([*(f"{bound:g}" for bound in LATENCY_BOUNDS_US), "+Inf"], counts, strict=True):
                cumulative += count
                yield f'{self.name}_bucket{{{labels},le="{bound}"}} {cumulative}'
            yield f"{self.name}_sum{{{labels}}} {total:g}"
            yield f"{self.name}_count{{{labels}}} {cumulative}"


class ServerMetrics:
    """All metrics of one server."""

    def __init__(self) -> None:
        self.requests = Counter("request_count", "Runs of a model.", ["model_name", "status"])
        labels = ["model_name", "API", "entrypoint"]
        self.latency = Histogram("request_latency", "Duration of successful runs, in microseconds.", labels)

    def record(self, model: str, api: str, entrypoint: str, code: Code, duration_s: float) -> None:
        """One finished run of a model. `model` must be a configured one: other names would add series without bound.

        As in TensorFlow Serving, the latency is that of successful requests, status and metadata do not count, and
        `api` is "Predict" over gRPC and "predict" over REST; of the Open Inference Protocol, "ModelInfer" and "infer".
        """
        self.requests.increment(model, code.name)
        if code is Code.OK:
            self.latency.observe(duration_s * 1e6, model, api, entrypoint)

    def page(self) -> bytes:
        """The page that Prometheus scrapes."""
        lines: list[str] = []
        for metric in (self.requests, self.latency):
            lines.append(f"# HELP {metric.name} {metric.text}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines.extend(metric.lines())
        return ("\n".join(lines) + "\n").encode()


def _label_text(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
