"""When to leave our patterns: 04's job beside engines, 03 beside other queues. `make bench-peers`, run by hand.

Each peer is a script in engines/ or queues/ with an environment of its own, which uv makes and keeps in its cache.
Writes peers.md and peers.json.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console

from scripts.benchmarks.peers import asynchronous, batch
from scripts.benchmarks.peers.peer import PeerRun
from scripts.benchmarks.report import facts, section
from scripts.devstack.machine import described, libraries
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile, parse, run_each
from scripts.devstack.stack import run
from scripts.devstack.table import ROOT
from scripts.devstack.terminal import INTERRUPTED

PARTS = {"03": (asynchronous, "queues"), "04": (batch, "engines")}
ROWS = {
    Profile.QUICK: [10_000],
    Profile.SHORT: [10_000, 100_000, 1_000_000],
    Profile.LONG: [10_000, 100_000, 1_000_000, 5_000_000],
}
JOBS = {Profile.QUICK: 200, Profile.SHORT: 5_000, Profile.LONG: 20_000}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes other than the profile's, and fewer peers."""
    parser.add_argument("--rows", type=int, nargs="+", help="rows of each batch")
    parser.add_argument("--jobs", type=int, help="jobs on each queue")
    known = sorted(path.stem.removeprefix("with_") for path in Path(__file__).parent.glob("*/with_*.py"))
    parser.add_argument("--peers", nargs="+", default=[], choices=known, help="all by default")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 if nothing failed, 1 if something did, 130 after Ctrl-C."""
    options = parse(__doc__, argv, dict.fromkeys(PARTS, ""), ROOT / "bench-results", add_options)
    return run(compare(options, shlex.join(sys.argv[1:] if argv is None else argv)))


async def compare(options: argparse.Namespace, arguments: str) -> int:
    """Measure these patterns beside their peers, and write what was measured, whatever failed."""
    console, started = Console(highlight=False), time.monotonic()
    say = partial(console.print, markup=False, soft_wrap=True)
    say(described())
    sizes = {"03": [options.jobs or JOBS[options.profile]], "04": options.rows or ROWS[options.profile]}
    runs = [
        PeerRun(
            pattern=PATTERNS[number],
            profile=options.profile,
            say=say,
            sizes=sizes[number],
            chosen=set(options.peers),
        )
        for number in options.patterns
    ]
    finished = await run_each(runs, console, lambda each: PARTS[each.pattern.number][0].measure(each))
    for path in write(runs, options.profile, time.monotonic() - started, arguments, options.output):
        say(str(path))
    return (1 if any(each.error for each in runs) else 0) if finished else INTERRUPTED


def write(runs: Sequence[PeerRun], profile: Profile, seconds: float, arguments: str, output: Path) -> list[Path]:
    """Write peers.md and peers.json; their paths."""
    output.mkdir(parents=True, exist_ok=True)
    command = f"python -m scripts.benchmarks.peers {arguments}".strip()
    text = [f"# Peers: when to leave our patterns\n\n`{command}` on {described()}; {seconds / 60:.0f} min.\n"]
    verdicts = {}
    for each in runs:
        module, folder = PARTS[each.pattern.number]
        verdicts[each.pattern.number] = module.verdict(each)
        text.append(section(each, each.title).replace("\n\n", f"\n\n{module.INTRODUCTION}\n", 1))
        text.append("\n" + "\n".join(peer.line for peer in each.peers(folder)) + "\n")
    text.append("\n## When to leave\n\nComputed from the figures above.\n")
    for number, lines in verdicts.items():
        text.append(f"\n{number}:\n\n" + "\n".join(lines or ["- Nothing to compare was measured."]) + "\n")
    text.append(f"\nOur versions: {', '.join(f'{name} {version}' for name, version in libraries().items())}; ")
    text.append("all packages of each peer are in peers.json.\n")
    (output / "peers.md").write_text("".join(text), encoding="utf-8")
    everything = facts(runs, profile, seconds) | {
        "command": command,
        "versions": {name: found for each in runs for name, found in each.versions.items()},
        "patterns": {each.pattern.number: [asdict(point) for point in each.measurements] for each in runs},
        "when_to_leave": verdicts,
    }
    (output / "peers.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
    return [output / "peers.md", output / "peers.json"]


if __name__ == "__main__":
    sys.exit(main())
