"""Runs every curl line of every README and compares the responses with those shown: `make smoke`.

    make smoke                  uses the patterns that are running (make up); starts and stops the others
    make smoke PATTERNS=06
    make smoke AS_SHOWN=1       uses the URLs of the READMEs, for docker compose up; starts nothing

The variables of `make up` change ports, as in PORT_06_PROXY=9100.
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

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, StackError, private_stack, run
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, make_console, parsed, parser_of_patterns
from serving_testing.readme import check_examples, count_unchecked, examples

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from pathlib import Path

RUN_DIR = ROOT / ".run/smoke"


@dataclass(frozen=True)
class ReadmeReport:
    """The result of checking one README."""

    readme: Path
    where: str
    lines: int
    unchecked: int
    problems: list[str]


def main(argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS, root: Path = ROOT) -> int:
    """Exit code: 0 if every answer was as shown, 1 if not, 130 after Ctrl-C."""
    parser = parser_of_patterns(__doc__, table)
    parser.add_argument("--as-shown", action="store_true", help="use the URLs that the READMEs show; start nothing")
    options = parsed(parser, argv, table)
    return run(smoke(options.patterns, table, root, as_shown=options.as_shown))


async def smoke(numbers: Sequence[str], table: Mapping[str, Pattern], root: Path, *, as_shown: bool) -> int:
    """Check the READMEs of these patterns, and the root's if these are all patterns."""
    console = make_console()
    checked: list[ReadmeReport] = []
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
                varying = varying_keys(table, number)
                checked.append(await asyncio.to_thread(check, readme, names, where.get(number, "all of them"), varying))
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
    """Whether all processes of a pattern respond at the addresses of this stack."""
    checkable = [
        each for each in stack.processes if each.id.startswith(f"{number}-") and each.definition.ready is not None
    ]
    return bool(checkable) and all(await asyncio.gather(*(each.is_ready() for each in checkable)))


def readmes(numbers: Sequence[str], table: Mapping[str, Pattern], root: Path) -> list[tuple[Path, str]]:
    """The READMEs of these patterns with their numbers, and the root's with an empty number."""
    folders = [(root / table[number].folder, number) for number in numbers]
    if set(numbers) == set(table):
        folders.append((root, ""))
    return [(readme, number) for folder, number in folders for readme in sorted(folder.glob("README*.md"))]


def shown_bases(table: Mapping[str, Pattern], urls: Mapping[str, str], number: str) -> dict[str, str]:
    """Maps the addresses in a README (ports of `make up`; in a pattern, of compose) to the real ones."""
    # Without http://, because curl does not need it.
    return {
        base: urls[name].removeprefix("http://")
        for base, name, _ in shown_ports(table, number)
        if name in urls  # the pattern is running
    }


def varying_keys(table: Mapping[str, Pattern], number: str) -> dict[str, Set[str]]:
    """By the address that a README shows: the keys whose values are compared by type only."""
    return {base: pattern.vary for base, _, pattern in shown_ports(table, number)}


def shown_ports(table: Mapping[str, Pattern], number: str) -> Iterator[tuple[str, str, Pattern]]:
    """Each `localhost:PORT` in the README of this pattern (or the root's), the name of the port, and its pattern."""
    published = table[number].published if number else {}
    for pattern in table.values():
        for name, port in ((name, port) for definition in pattern.processes for name, port in definition.ports.items()):
            if name in published or port not in published.values():
                yield f"localhost:{published.get(name, port)}", name, pattern


def stand_ins(table: Mapping[str, Pattern], root: Path) -> dict[str, str]:
    """Maps the reader's own files that READMEs name to files of the repository."""
    return {name: str(root / file) for pattern in table.values() for name, file in pattern.files.items()}


def check(readme: Path, names: Mapping[str, str], where: str, varying: Mapping[str, Set[str]]) -> ReadmeReport:
    """Run and compare the examples of one README."""
    text = readme.read_text(encoding="utf-8")
    try:
        lines = sum(len(example.commands) for example in examples(text))
        unchecked = count_unchecked(text)
    except ValueError:
        lines = unchecked = 0  # check_examples reports the reason
    return ReadmeReport(readme, where, lines, unchecked, check_examples(readme, names, varying=varying))


def summary(checked: Sequence[ReadmeReport], root: Path) -> Table:
    """One row per README."""
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
