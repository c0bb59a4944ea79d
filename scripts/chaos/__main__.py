"""Injects faults into patterns on this machine, under load, and counts what is lost: `make prove`.

`python -m scripts.chaos 03 06` for some of them. Every pattern runs as the processes of `make up`, which the supervisor
restarts when they die, as `restart: always` would. Exit code 0 if nothing was lost, done twice or stuck, and nothing
failed that the faults do not explain; 1 otherwise.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from scripts.chaos.harness import ChaosRun
from scripts.chaos.loss_report import rows, write
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile, modules, parse, run_each
from scripts.devstack.stack import run
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, make_console


def main(
    argv: Sequence[str] | None = None,
    table: Mapping[str, Pattern] = PATTERNS,
    known: Mapping[str, str] | None = None,
) -> int:
    """Exit code: 0 if every column that must be 0 is, 1 if not, 130 after Ctrl-C. What is skipped does not fail."""
    known = modules("scripts.chaos") if known is None else known
    options = parse(__doc__, argv, known, ROOT / "prove-results")
    return run(prove_all(options.patterns, table, known, options.profile, options.output))


async def prove_all(
    numbers: Sequence[str], table: Mapping[str, Pattern], known: Mapping[str, str], profile: Profile, output: Path
) -> int:
    """Run these patterns' modules one after the other; print and write the loss report of those that could start."""
    console = make_console()

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    async def inject(chaos: ChaosRun) -> None:
        await import_module(known[chaos.pattern.number]).inject(chaos)

    chaos_runs = [ChaosRun(pattern=table[number], profile=profile, say=say) for number in numbers]
    finished = await run_each(chaos_runs, console, inject)
    reported = [each for each in chaos_runs if each.incidents or each.error or not each.skipped]
    say("\n".join(rows(reported)))
    for chaos in reported:
        for result in chaos.failed[:5]:
            say(f"FAILED: {chaos.pattern.number} {result.kind} {result.violation}")
    say(f"Written: {', '.join(map(str, write(reported, output, profile)))}. Logs: {ChaosRun.run_dir / 'logs'}")
    if not finished:
        return INTERRUPTED
    return 0 if all(each.is_passed for each in reported) else 1


if __name__ == "__main__":
    sys.exit(main())
