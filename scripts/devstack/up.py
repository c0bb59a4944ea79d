"""Runs patterns in the foreground until Ctrl-C: `make up PATTERNS="04 06"`.

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
from scripts.devstack.terminal import address_table, chosen_patterns, event_printer, line_printer, make_console

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def main(argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS) -> int:
    """Exit code: 0 after Ctrl-C or SIGTERM, 1 if the patterns could not be started."""
    return run(up(chosen_patterns(__doc__, argv, table), table))


async def up(numbers: Sequence[str], table: Mapping[str, Pattern]) -> int:
    """Run these patterns until cancelled."""
    console = make_console()
    readable_logs = {"LOG_FORMAT": "console", **os.environ}
    try:
        async with DevStack(
            numbers,
            table=table,
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
