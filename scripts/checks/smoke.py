"""Runs every curl line of every README, and compares the answers with those that the README shows: `make smoke`.

    make smoke                  patterns that run (make up) are asked where they are; others are started, and stopped
    make smoke PATTERNS=06
    make smoke AS_SHOWN=1       the URLs of the READMEs as they are: against docker compose up; nothing is started

Other ports: the variables of `make up`, as PORT_06_PROXY=9100. The tests use the same check, scripts.checks.readme.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Column, Table

from scripts.checks.readme import check_examples, examples, unchecked
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, StackError, private_stack, run
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, make_console, parsed, parser_of_patterns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from pathlib import Path

RUN_DIR = ROOT / ".run/smoke"


@dataclass(frozen=True)
class Checked:
    """What came of one README."""

    readme: Path
    where: str
    lines: int
    unchecked: int
    problems: list[str]


def main(argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS, root: Path = ROOT) -> int:
    """Exit code: 0 if every answer was as shown, 1 if not, 130 after Ctrl-C."""
    parser = parser_of_patterns(__doc__, table)
    parser.add_argument("--as-shown", action="store_true", help="ask the URLs that the READMEs show; start nothing")
    options = parsed(parser, argv, table)
    return run(smoke(options.patterns, table, root, as_shown=options.as_shown))


async def smoke(numbers: Sequence[str], table: Mapping[str, Pattern], root: Path, *, as_shown: bool) -> int:
    """Check the READMEs of these patterns, and the root's when all patterns are among them."""
    console = make_console()
    checked: list[Checked] = []
    try:
        async with contextlib.AsyncExitStack() as exits:
            running = DevStack(numbers, table=table)
            present = [number for number in numbers if as_shown or await is_up(running, number)]
            urls, where = dict(running.urls), dict.fromkeys(present, "as shown" if as_shown else "running")
            if absent := [number for number in numbers if number not in present]:
                console.print(f"Starting {', '.join(absent)}.", soft_wrap=True)
                started = await exits.enter_async_context(private_stack(absent, RUN_DIR, table=table))
                own = tuple(f"PORT_{number}_" for number in absent)
                urls |= {name: url for name, url in started.urls.items() if name.startswith(own)}
                where |= dict.fromkeys(absent, "started")
            for readme, number in readmes(numbers, table, root):
                names = stand_ins(table, root) | ({} if as_shown else shown_bases(table, urls, number))
                vary = variable_keys(table, number)
                checked.append(await asyncio.to_thread(check, readme, names, where.get(number, "all of them"), vary))
    except StackError as exc:
        console.print(f"make smoke: {exc}", markup=False, style="red")
        return 1
    except asyncio.CancelledError:
        console.print("Interrupted; all stopped.")
        return INTERRUPTED
    for problem in (problem for each in checked for problem in each.problems):
        console.print(f"WRONG: {problem}", markup=False, style="bold red", soft_wrap=True)
    console.print(summary(checked, root))
    return 1 if any(each.problems for each in checked) else 0


async def is_up(stack: DevStack, number: str) -> bool:
    """Whether all of a pattern's processes answer where this stack would have them."""
    probed = [
        each for each in stack.processes if each.id.startswith(f"{number}-") and each.definition.ready is not None
    ]
    return bool(probed) and all(await asyncio.gather(*(each.is_ready() for each in probed)))


def readmes(numbers: Sequence[str], table: Mapping[str, Pattern], root: Path) -> list[tuple[Path, str]]:
    """The READMEs of these patterns with their numbers, and the root's with none."""
    folders = [(root / table[number].folder, number) for number in numbers]
    if set(numbers) == set(table):
        folders.append((root, ""))
    return [(readme, number) for folder, number in folders for readme in sorted(folder.glob("README*.md"))]


def shown_bases(table: Mapping[str, Pattern], urls: Mapping[str, str], number: str) -> dict[str, str]:
    """What READMEs show to where it is: the ports of `make up`, and in a pattern's own README those of compose."""
    # Without http://, which curl does not need.
    return {
        base: urls[name].removeprefix("http://")
        for base, name, _ in shown_ports(table, number)
        if name in urls  # of a pattern that runs
    }


def variable_keys(table: Mapping[str, Pattern], number: str) -> dict[str, Set[str]]:
    """Keys whose values may be others than a README shows, by what it shows to be asked."""
    return {base: pattern.vary for base, _, pattern in shown_ports(table, number)}


def shown_ports(table: Mapping[str, Pattern], number: str) -> Iterator[tuple[str, str, Pattern]]:
    """Each `localhost:PORT` of the README of this pattern (or of the root), the port's name, and whose it is."""
    published = table[number].published if number else {}
    for pattern in table.values():
        for name, port in ((name, port) for definition in pattern.processes for name, port in definition.ports.items()):
            if name in published or port not in published.values():
                yield f"localhost:{published.get(name, port)}", name, pattern


def stand_ins(table: Mapping[str, Pattern], root: Path) -> dict[str, str]:
    """The reader's own files, which READMEs name, to what stands for them here."""
    return {name: str(root / file) for pattern in table.values() for name, file in pattern.files.items()}


def check(readme: Path, names: Mapping[str, str], where: str, vary: Mapping[str, Set[str]]) -> Checked:
    """Run and compare the examples of one README."""
    text = readme.read_text(encoding="utf-8")
    try:
        lines = sum(len(example.commands) for example in examples(text))
        elsewhere = unchecked(text)
    except ValueError:
        lines = elsewhere = 0  # check_examples says why
    return Checked(readme, where, lines, elsewhere, check_examples(readme, names, vary=vary))


def summary(checked: Sequence[Checked], root: Path) -> Table:
    """One row for every README."""
    columns = ("README", "stack", "curl lines run", "examples wrong", "curl lines not checked")
    table = Table(*(Column(name, overflow="fold") for name in columns), box=box.ASCII2)
    for each in checked:
        name = os.path.relpath(each.readme, root)
        style = "bold red" if each.problems else None
        counts = (str(each.lines), str(len(each.problems)), str(each.unchecked or "-"))
        table.add_row(name, each.where, *counts, style=style)
    return table


if __name__ == "__main__":
    sys.exit(main())
