"""Measures patterns, each on its own and all side by side, and writes it down: `make bench`, BENCH=long for longer.

Writes bench.md, bench.json and plots into bench-results/; `make bench SAMPLE=docs/bench` writes them for the README.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.benchmarks import plots, side_by_side
from scripts.benchmarks.__main__ import BENCHES
from scripts.benchmarks.figures import Figure, markdown, read
from scripts.devstack.machine import described, libraries, machine
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import ROOT, StackError, run
from scripts.devstack.terminal import INTERRUPTED, parsed, parser_of_patterns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Two minutes or so for all of them; without these options each takes as long as its module says.
SHORT = {
    "02": ("--rounds", "3", "--seconds", "0.5"),
    "03": ("--seconds", "1.5", "--jobs", "10000"),
    "04": ("--rows", "20000", "--book-rows", "500", "--large", "100000"),
    "06": ("--rounds", "3", "--seconds", "0.5"),
    "07": ("--rounds", "3", "--seconds", "1", "--jobs", "200", "--sustained", "15"),
}
SIDE_BY_SIDE = {"short": (3, 1.0), "long": (5, 4.0)}  # rounds, seconds of each
INTRODUCTION = """\
Everything ran on one machine, the load generator included: what takes turns in one run can be compared, and ratios
hold elsewhere. Absolute figures are this machine's.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if everything could be measured, 1 if not, 130 after Ctrl-C. A missed target is no failure."""
    parser = parser_of_patterns(__doc__, BENCHES)
    parser.add_argument("--form", choices=SIDE_BY_SIDE, default="short")
    parser.add_argument("--output", type=Path, default=ROOT / "bench-results")
    options = parsed(parser, argv, BENCHES)
    return run(bench(options.patterns, options.form, options.output))


async def bench(numbers: Sequence[str], form: str, output: Path) -> int:
    """Measure and write."""
    started = time.monotonic()
    try:
        together = await side_by_side.measure(numbers, *SIDE_BY_SIDE[form])
        alone = {number: await asyncio.to_thread(one, number, form) for number in numbers}
    except (StackError, subprocess.CalledProcessError) as exc:
        print(f"make bench: {exc}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        return INTERRUPTED
    for path in write(together, alone, form, time.monotonic() - started, output):
        print(path)
    return 0


def one(number: str, form: str) -> list[Figure]:
    """A pattern's own benchmark, in a process of its own, which prints its tables. CalledProcessError if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        options = [*(SHORT[number] if form == "short" else ()), "--json", str(figures)]
        print(f"\n{number} {PATTERNS[number].title}", flush=True)
        subprocess.run([sys.executable, "-m", "scripts.benchmarks", number, *options], cwd=ROOT, check=True)
        return read(figures)


def write(
    together: side_by_side.SideBySide, alone: Mapping[str, Sequence[Figure]], form: str, seconds: float, output: Path
) -> list[Path]:
    """bench.md, bench.json and the plots; their paths."""
    output.mkdir(parents=True, exist_ok=True)
    drawn = plots.draw(together, alone.get("03", ()), output)
    command = "make bench" + (" BENCH=long" if form == "long" else "")
    text = [f"# Measured\n\n`{command}` on {described()}; {seconds / 60:.0f} min.\n\n{INTRODUCTION}"]
    text += [f"\n![{path.stem.replace('_', ' ')}]({path.name})\n" for path in drawn]
    text += ["\n## Side by side\n", markdown(together.figures())]
    for number, figures in alone.items():
        text += [f"\n## {number} {PATTERNS[number].title}\n", markdown(figures)]
    versions = ", ".join(f"{name} {version}" for name, version in libraries().items())
    text.append(f"\nVersions: {versions}.\n")
    (output / "bench.md").write_text("".join(text), encoding="utf-8")
    everything = {
        "machine": machine(),
        "libraries": libraries(),
        "form": form,
        "seconds": seconds,
        "side_by_side": {
            "figures": [asdict(figure) for figure in together.figures()],
            "percentiles": side_by_side.PERCENTILES,
            "latency_ms": {count: together.percentiles_ms(count) for count in (1, side_by_side.TYPICAL)},
        },
        "patterns": {number: [asdict(figure) for figure in figures] for number, figures in alone.items()},
    }
    (output / "bench.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return [output / "bench.md", output / "bench.json", *drawn]


if __name__ == "__main__":
    sys.exit(main())
