"""Runs patterns in the foreground until Ctrl-C: `make up PATTERNS="04 06"`; RELOAD=1 restarts what you edit.

Each log line is prefixed with the process that wrote it, and is also in .run/logs/<pattern>-<process>.log.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, StackError, run
from scripts.devstack.table import Pattern
from scripts.devstack.terminal import (
    address_table,
    event_printer,
    line_printer,
    make_console,
    parsed,
    parser_of_patterns,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def main(argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS) -> int:
    """Exit code: 0 after Ctrl-C or SIGTERM, 1 if the patterns could not be started."""
    parser = parser_of_patterns(__doc__, table)
    parser.add_argument("--reload", action="store_true", help="restart the processes whose source files change")
    options = parsed(parser, argv, table)
    return run(up(options.patterns, table, reload=options.reload))


async def up(numbers: Sequence[str], table: Mapping[str, Pattern], *, reload: bool = False) -> int:
    """Run these patterns until cancelled."""
    console = make_console()
    readable_logs = {"LOG_FORMAT": "console", **os.environ}
    try:
        async with DevStack(
            numbers,
            table=table,
            reload=reload,
            environ=readable_logs if console.is_terminal else None,
            on_output=line_printer(console, table),
            on_event=event_printer(console, table),
        ) as stack:
            console.print(address_table(stack))
            console.print("All ready. Ctrl-C stops them.")
            await asyncio.Event().wait()
    except StackError as exc:
        console.print(f"make up: {exc}", markup=False, style="red")
        return 1
    except asyncio.CancelledError:
        console.print("All stopped.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
