"""Command lines and terminal output that the programs of scripts/ share."""

from __future__ import annotations

import argparse
import io
import itertools
import os
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from scripts.devstack.stack import DevStack
    from scripts.devstack.table import Pattern

COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "bright_magenta")
PLAIN_WIDTH = 120
INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended


def parser_of_patterns(description: str | None, known: Collection[str]) -> argparse.ArgumentParser:
    """A parser of numbers of patterns, to which a program adds its own options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patterns", nargs="*", metavar="NN", help=f"of {', '.join(known)}; all when none is named")
    return parser


def parsed(parser: argparse.ArgumentParser, argv: Sequence[str] | None, known: Collection[str]) -> argparse.Namespace:
    """The options; `patterns` are the numbers that were named, or all. Another number: usage and exit code 2."""
    options = parser.parse_args(argv)
    if unknown := [number for number in options.patterns if number not in known]:
        parser.error(f"no pattern {', '.join(unknown)}; there are {', '.join(known)}")
    options.patterns = options.patterns or list(known)
    return options


def make_console() -> Console:
    """Colours and drawn lines on a terminal; anywhere else plain ASCII, which every log viewer shows."""
    if not sys.stdout.isatty() and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="ascii", errors="backslashreplace", line_buffering=True)
        return Console(highlight=False, no_color=True, force_terminal=False, width=PLAIN_WIDTH)
    return Console(highlight=False)


def line_printer(console: Console, table: Mapping[str, Pattern]) -> Callable[[str, list[str]], None]:
    """A function that prints lines of one process, each behind its label: `06 proxy | ...`."""
    labels = [f"{pattern.number} {process.name}" for pattern in table.values() for process in pattern.processes]
    width = max(map(len, labels))
    bar = "|" if console.options.ascii_only else "│"
    prefixes = {}
    for label, colour in zip(labels, itertools.cycle(COLOURS), strict=False):
        with console.capture() as rendered:
            console.print(Text(f"{label:{width}} {bar} ", style=colour), end="")
        prefixes[label] = rendered.get()

    def show(label: str, lines: list[str]) -> None:
        # Not through rich, which takes a millisecond a line: a slow reader of their output would slow the services.
        console.file.write("".join(f"{prefixes[label]}{line}\n" for line in lines))
        console.file.flush()

    return show


def event_printer(console: Console, table: Mapping[str, Pattern]) -> Callable[[str, str], None]:
    """A function that prints what happens to a process, told from its own lines by a mark."""
    show = line_printer(console, table)
    return lambda label, text: show(label, [f"-- {line}" for line in text.splitlines()])


def address_table(stack: DevStack) -> Table:
    """Where every process of a running stack is reached, and where its log is."""
    rows = Table("pattern", "process", "address", "log")
    for managed in stack.processes:
        number, _, name = managed.id.partition("-")
        rows.add_row(number, name, "\n".join(managed.addresses) or "-", os.path.relpath(managed.log))
    return rows
