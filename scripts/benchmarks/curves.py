"""A figure over a range of sizes: the law that it follows and where it bends, computed; its table and its plot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scripts.benchmarks.harness import Measurement
from scripts.benchmarks.plots import COLOURS, panels_of, save
from scripts.benchmarks.report import markdown

CONSTANT = 0.1
"""Exponents below this are noise: a quarter more in a decade."""
BENDS_BY = 0.2
"""Least change of the exponent that counts as a bend, if the line with it also has a quarter of the error without."""
AFFINE_ERROR = 0.1

Numbers = NDArray[np.float64]
Curves = dict[str, tuple[Numbers, Numbers]]
"""Sizes and values, by what is measured."""
Figures = dict[str, tuple[float, str]]
"""Value and unit, by what is measured."""


@dataclass(frozen=True, kw_only=True)
class Point(Measurement):
    """A measurement at one size."""

    at: float


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What grows, over which size, and why its curves have their form."""

    file: str
    title: str
    size: str
    why: str

    def points(self, at: float, figures: Figures) -> list[Point]:
        """The figures at this size."""
        return [
            Point(group=self.title, what=_number(at), measure=measure, value=value, unit=unit, at=at)
            for measure, (value, unit) in figures.items()
        ]

    def section(self, points: Sequence[Point], folder: Path) -> str:
        """The table, the plot, which is written into the folder, the law of each curve, and the reason."""
        by_unit = {unit: curves([each for each in points if each.unit == unit]) for unit in _units(points)}
        laws = [
            f"- **{measure}**: {law(sizes, values, unit, self.size)}."
            for unit, found in by_unit.items()
            for measure, (sizes, values) in found.items()
        ]
        if not laws:  # it was interrupted at the first size
            return markdown(points)
        drawn = self._draw({unit: found for unit, found in by_unit.items() if found}, folder)
        return "\n".join([markdown(points), f"![{self.title}]({drawn.name})", "", *laws, "", f"Why: {self.why}\n"])

    def _draw(self, by_unit: Mapping[str, Curves], folder: Path) -> Path:
        """A panel for each unit, both axes logarithmic; a dotted line where a curve bends."""
        drawing, panels = panels_of(len(by_unit))
        for axes, (unit, found) in zip(panels, by_unit.items(), strict=True):
            for colour, (measure, (sizes, values)) in zip(COLOURS, found.items(), strict=False):
                axes.plot(sizes, values, "o-", label=measure, color=colour)
                if (bend := bend_of(sizes, values, unit)) is not None:
                    axes.axvline(bend, color=colour, linestyle=":", alpha=0.7)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set(xlabel=self.size, ylabel=unit)
            axes.xaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.grid(alpha=0.3, which="both")
            axes.legend(fontsize=8)
        drawing.suptitle(self.title)
        drawing.tight_layout()
        return save(drawing, folder / f"{self.file}.svg")


def _units(points: Sequence[Point]) -> list[str]:
    return list(dict.fromkeys(point.unit for point in points))


def curves(points: Sequence[Point]) -> Curves:
    """Sizes and values of each measure that was measured at two sizes at least."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point in points:
        if point.value > 0:  # a load too short for the clock; it has no logarithm
            found.setdefault(point.measure, []).append((point.at, point.value))
    pairs = {measure: np.array(each).T for measure, each in found.items() if len(each) > 1}
    return {measure: (sizes, values) for measure, (sizes, values) in pairs.items()}


def fixed_and_each(sizes: Numbers, values: Numbers, unit: str) -> tuple[float, float] | None:
    """A fixed cost and that of each unit, if their sum fits within 10 % and each is the larger somewhere; else None."""
    if len(sizes) < 3 or unit.endswith("/s"):  # rates do not add up
        return None
    (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / values, sizes / values], 1), np.ones_like(values), rcond=None)
    error = np.sqrt(np.mean(((fixed + each * sizes) / values - 1) ** 2))
    is_law = fixed > 0 and each > 0 and error < AFFINE_ERROR and sizes[0] < fixed / each < sizes[-1]
    return (float(fixed), float(each)) if is_law else None


def exponents(sizes: Numbers, values: Numbers) -> tuple[float, float, float | None]:
    """The slope of log(value) over log(size) before and after its bend, and the size there; None: a straight line."""
    x, y = np.log(sizes), np.log(values)

    def fit(*columns: Numbers) -> tuple[Numbers, float]:
        terms = np.stack([np.ones_like(x), x, *columns], axis=1)
        solution = np.linalg.lstsq(terms, y, rcond=None)[0]
        return solution, float(np.sum((terms @ solution - y) ** 2))

    line, error = fit()
    bent = [(*fit(np.maximum(0, x - at)), at) for at in x[1:-1]]
    if len(x) > 3:
        (_, before, change), least, at = min(bent, key=lambda found: found[1])
        if abs(change) >= BENDS_BY and least < error / 4:
            return float(before), float(before + change), float(np.exp(at))
    return float(line[1]), float(line[1]), None


def bend_of(sizes: Numbers, values: Numbers, unit: str) -> float | None:
    """The size at which the law changes, or None."""
    if parts := fixed_and_each(sizes, values, unit):
        return parts[0] / parts[1]
    return exponents(sizes, values)[2]


def law(sizes: Numbers, values: Numbers, unit: str, size: str) -> str:
    """What the values do as the size grows, in words."""
    if parts := fixed_and_each(sizes, values, unit):
        fixed, each = (f"{_number(part)} {unit}" for part in parts)
        bend = f"the second part is the larger one from {_number(parts[0] / parts[1])} on"
        return f"{fixed} and {each} for each of the {size}; {bend}"
    before, after, bend_at = exponents(sizes, values)
    if bend_at is None:
        return _exponent(before)
    return f"{_exponent(before)} up to {_number(bend_at)} {size}, then {_exponent(after)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _exponent(exponent: float) -> str:
    exponent = round(exponent, 2) + 0.0  # never "-0.00"
    if abs(exponent) < CONSTANT:
        return f"constant (exponent {exponent:.2f})"
    return f"{'grows' if exponent > 0 else 'falls'} with the exponent {exponent:.2f}"
