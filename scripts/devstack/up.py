"""Runs patterns in the foreground until Ctrl-C: `make up PATTERNS="04 06"`; RELOAD=1 restarts what you edit.

METRICS=1 starts a Prometheus beside them, where one is installed; MODEL=churn serves models/artifacts/churn, a model
of your own that models.add has written; TRACES=1 keeps the last 10,000 spans of all processes.
The console, a page about all of them, is on PORT_CONSOLE (8080); CONSOLE=0 does without.

Each log line is prefixed with the process that wrote it, and is also in .run/logs/<pattern>-<process>.log.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from scripts.devstack import metrics
from scripts.devstack.own_model import ModelError, chosen
from scripts.devstack.patterns import OWN_MODELS, PATTERNS
from scripts.devstack.stack import DevStack, StackError, port_from, run, why_unusable
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import (
    address_table,
    event_printer,
    line_printer,
    make_console,
    parsed,
    parser_of_patterns,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from rich.console import Console

    from scripts.devstack.spans import SpanStore

CONSOLE_PORT = 8080


def main(argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS) -> int:
    """Exit code: 0 after Ctrl-C or SIGTERM, 1 if the patterns could not be started."""
    parser = parser_of_patterns(__doc__, table)
    parser.add_argument("--reload", action="store_true", help="restart the processes whose source files change")
    parser.add_argument("--metrics", action="store_true", help="start a Prometheus that scrapes the processes")
    parser.add_argument("--traces", action="store_true", help="keep the last 10,000 spans of the processes")
    parser.add_argument("--model", metavar="NAME", help="of your own, in models/artifacts")
    options = parsed(parser, argv, table)
    more = {"reload": options.reload, "with_metrics": options.metrics, "with_traces": options.traces}
    return run(up(options.patterns, table, model=options.model, **more))


async def up(
    numbers: Sequence[str],
    table: Mapping[str, Pattern],
    *,
    reload: bool = False,
    with_metrics: bool = False,
    with_traces: bool = False,
    model: str | None = None,
) -> int:
    """Run these patterns until cancelled."""
    console = make_console()
    try:
        if model:
            numbers, own, _ = chosen(model, numbers, OWN_MODELS, console.print)
            table = {**table, **own}
    except ModelError as exc:
        console.print(f"make up: {exc}", markup=False, style="red", soft_wrap=True)
        return 1
    if with_metrics:
        table = metrics.with_prometheus(table)
        if metrics.NUMBER in table:
            numbers = [*numbers, metrics.NUMBER]
        else:
            console.print(metrics.MISSING, markup=False, style="yellow")
    readable_logs = {"LOG_FORMAT": "console"} if console.is_terminal else {}
    try:
        async with receiving_spans(with_traces) as (traced, store):
            stack = DevStack(
                numbers,
                table=table,
                reload=reload,
                environ=readable_logs | traced | os.environ,
                on_output=line_printer(console, table),
                on_event=event_printer(console, table),
            )
            if metrics.NUMBER in table:
                metrics.configure(stack, ROOT / ".run")
            async with with_console(stack, table, console, store), stack:
                console.print(address_table(stack))
                if with_traces:
                    console.print(f"Traces: {traced['OTEL_EXPORTER_OTLP_ENDPOINT']}/traces", soft_wrap=True)
                console.print("All ready. Ctrl-C stops them.")
                await asyncio.Event().wait()
    except StackError as exc:
        console.print(f"make up: {exc}", markup=False, style="red", soft_wrap=True)
        return 1
    except asyncio.CancelledError:
        console.print("All stopped.")
    return 0


@asynccontextmanager
async def receiving_spans(is_wanted: bool) -> AsyncIterator[tuple[dict[str, str], SpanStore | None]]:
    """Receive spans meanwhile, if wanted: the variables that make processes send them, and what keeps them."""
    if not is_wanted:
        yield {}, None
        return
    from scripts.devstack import spans  # imports OpenTelemetry

    store = spans.SpanStore()
    async with spans.serving(store) as url:
        yield spans.variables(url), store


@asynccontextmanager
async def with_console(
    stack: DevStack, table: Mapping[str, Pattern], output: Console, store: SpanStore | None
) -> AsyncIterator[None]:
    """Serve the console meanwhile, from before the first process starts. Without its port, the patterns run alone."""
    async with AsyncExitStack() as exits:
        if os.environ.get("CONSOLE") != "0":
            from scripts.devstack.console.app import serving  # a web server, which CONSOLE=0 does without

            port = port_from("PORT_CONSOLE", CONSOLE_PORT, os.environ)
            problem = "is wanted by a pattern" if port in stack.wanted_ports else why_unusable(port)
            try:
                if problem is None:
                    address = await exits.enter_async_context(serving(stack, table, port, store))
                    output.print(f"Console: {address}", markup=False, soft_wrap=True)
            except OSError:
                problem = "is taken"
            if problem is not None:
                hint = "To use another: PORT_CONSOLE=<port> make up; to do without: CONSOLE=0"
                output.print(f"No console: port {port} {problem}. {hint}", markup=False, style="yellow", soft_wrap=True)
        yield


if __name__ == "__main__":
    sys.exit(main())
