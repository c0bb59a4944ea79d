"""Measures patterns beside baselines and alternatives, and beside each other: `python -m scripts.benchmarks 06`.

Writes bench.md, bench.json and plots into bench-results/. `make bench SAMPLE=docs/bench` writes the committed ones,
and from them the figures in all READMEs.
"""

import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from scripts.benchmarks import side_by_side
from scripts.benchmarks.harness import Benchmark
from scripts.benchmarks.report import markdown, write
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile, modules, parse, run_each
from scripts.devstack.stack import run
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED

ALL = Pattern(number="All", title="side by side", folder="", processes=())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if nothing failed, 1 if something did, 130 after Ctrl-C. A missed target is not a failure."""
    known = modules("scripts.benchmarks")
    options = parse(__doc__, argv, known, ROOT / "bench-results")
    chosen = {number: known[number] for number in options.patterns}
    return run(bench(chosen, options.profile, options.output))


async def bench(chosen: dict[str, str], profile: Profile, output: Path) -> int:
    """Measure these modules by number of their patterns, and write what was measured, whatever failed."""
    console = Console(highlight=False)
    started = time.monotonic()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    async def measure(benchmark: Benchmark) -> None:
        module = import_module(chosen[benchmark.pattern.number])
        getattr(module, "check", lambda: None)()
        try:
            await module.measure(benchmark)
        finally:
            say(markdown(benchmark.measurements))

    say(described())
    together = side_by_side.SideBySide(pattern=ALL, profile=profile, say=say)
    benchmarks = [Benchmark(pattern=PATTERNS[number], profile=profile, say=say) for number in chosen]
    finished = await run_each([together], console, lambda run: side_by_side.measure(run, chosen))
    finished = finished and await run_each(benchmarks, console, measure)
    for path in write(together, benchmarks, profile, time.monotonic() - started, output):
        say(str(path))
    failed = any(run.error for run in (together, *benchmarks))
    return (1 if failed else 0) if finished else INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
