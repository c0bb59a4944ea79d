"""The plots of `make bench`, as SVG: readable on light and dark pages, and the same bytes for the same measurements."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10})

from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure as Drawing  # noqa: E402

from scripts.benchmarks.harness import TYPICAL_CONNECTIONS, Measurement, plural  # noqa: E402
from scripts.benchmarks.side_by_side import PERCENTILES, SideBySide  # noqa: E402

COLOURS = ("#0072b2", "#d55e00", "#cc79a7", "#009e73", "#e69f00", "#56b4e9", "#7f7f7f")  # for all kinds of vision
WIDTH, HEIGHT = 9, 4.2
LATENCY_CONNECTIONS = (1, TYPICAL_CONNECTIONS)


def draw(found: SideBySide, alone: Sequence[Measurement], folder: Path) -> list[Path]:
    """Draw latency, throughput and the cost of scaling out; the files that were written."""
    drawings = {
        "latency.svg": _latency(found),
        "throughput.svg": _throughput(found),
        "scale_out.svg": _scale_out(found, alone),
    }
    return [save(drawing, folder / name) for name, drawing in drawings.items()]


def save(drawing: Drawing, path: Path) -> Path:
    """Write an SVG, the same bytes for the same drawing."""
    drawing.savefig(path, metadata={"Date": None}, facecolor="white", bbox_inches="tight")
    plt.close(drawing)
    return path


def panels_of(count: int) -> tuple[Drawing, list[Axes]]:
    """An empty drawing with this many panels side by side."""
    drawing, panels = plt.subplots(1, count, figsize=(WIDTH, HEIGHT), squeeze=False)
    return drawing, list(panels[0])


def _latency(found: SideBySide) -> Drawing:
    drawing, panels = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT), sharey=True)
    for axes, connections in zip(panels, LATENCY_CONNECTIONS, strict=True):
        for what, latencies in found.percentiles_ms(connections).items():
            axes.plot(latencies, PERCENTILES, label=what, color=_colours(found)[what])
        axes.set_xscale("log")
        axes.set(title=plural(connections), xlabel="ms")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
    panels[0].set_ylabel("% of the responses arrive within")
    panels[0].legend(fontsize=8)
    drawing.suptitle("Latency of what the caller waits for")
    return drawing


def _colours(found: SideBySide) -> dict[str, str]:
    """Each endpoint's colour, the same in every plot."""
    return dict(zip(found.rates(), itertools.cycle(COLOURS), strict=False))


def _throughput(found: SideBySide) -> Drawing:
    drawing, axes = plt.subplots(figsize=(WIDTH, HEIGHT))
    for what, rates in found.rates().items():
        axes.plot(*zip(*rates, strict=True), "o-", label=what, color=_colours(found)[what])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="connections", ylabel="responses per second")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    drawing.suptitle("Throughput against concurrency")
    return drawing


def _scale_out(found: SideBySide, alone: Sequence[Measurement]) -> Drawing:
    drawing, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, HEIGHT))
    fan_out = [each for each in found.measurements if "fanning out" in each.group and each.measure == "rate"]
    _bars(left, ["none: a service\ncalled directly", "1", "2", "3"][: len(fan_out)], fan_out, COLOURS[3])
    title = f"06, {plural(TYPICAL_CONNECTIONS)}"
    left.set(title=title, xlabel="services that one proxy calls", ylabel="responses per second")
    jobs = [each for each in alone if each.measure == "rate" and each.what.endswith(", model server")]
    _bars(right, [each.what.partition(" ")[0] for each in jobs], jobs, COLOURS[1])
    right.set(title="03, a full queue", xlabel="workers", ylabel="jobs per second")
    drawing.suptitle("What scaling out costs and brings, on this one machine")
    drawing.tight_layout()
    return drawing


def _bars(axes: Axes, names: Sequence[str], measurements: Sequence[Measurement], colour: str) -> None:
    bars = axes.bar(names, [each.value for each in measurements], color=colour, width=0.6)
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    axes.grid(alpha=0.3, axis="y")
