"""Shows patterns at work: starts them, sends real requests, checks and prints the answers, and stops everything.

    make demo PATTERNS="04 06"
    make demo PATTERNS="03 04 06" MODEL=churn              with models/artifacts/churn, which models.add has written
    python -m scripts.devstack.demo --svg docs/demo.svg    also draws the summary, for the README

Exit code 0 if every answer was right. State starts empty, in .run/demo/ with the logs.
Each pattern's requests are the function `demo` of its module in scripts/devstack/patterns.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from scripts.devstack.own_model import ModelError, chosen
from scripts.devstack.patterns import DEMOS, OWN_MODELS, PATTERNS
from scripts.devstack.stack import DevStack, StackError, free_ports, run
from scripts.devstack.steps import Demo, Step, caller_api_key
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import INTERRUPTED, event_printer, make_console, parsed, parser_of_patterns

# Not the state of `make up`, which may be running on other ports.
RUN_DIR = ROOT / ".run/demo"
REQUEST_TIMEOUT_S = 30
ONE_LINE = 100
PICTURE_WIDTH, PICTURE_CELL = 166, 48


def main(
    argv: Sequence[str] | None = None, table: Mapping[str, Pattern] = PATTERNS, demos: Mapping[str, Demo] = DEMOS
) -> int:
    """Exit code: 0 if every answer was right, 1 if not or if a pattern could not be started, 130 after Ctrl-C."""
    parser = parser_of_patterns(__doc__, demos)
    parser.add_argument("--svg", type=Path, help="also draw the summary into this file")
    parser.add_argument("--model", metavar="NAME", help="of your own, in models/artifacts")
    options = parsed(parser, argv, demos)
    return run(show_all(options.patterns, table, demos, options.svg, options.model))


async def show_all(
    numbers: Sequence[str],
    table: Mapping[str, Pattern],
    demos: Mapping[str, Demo],
    svg: Path | None = None,
    model: str | None = None,
) -> int:
    """Run the demos of these patterns one after the other on one stack, and sum up; in a picture, too, if wanted."""
    console = make_console()
    steps: dict[str, list[Step]] = {}
    api_key = {"X-API-Key": key} if (key := caller_api_key()) else {}  # the services read it too
    try:
        if model:
            numbers, own, demos = chosen(model, numbers, OWN_MODELS, console.print)
            table = {**table, **own}
        async with (
            DevStack(
                numbers,
                table=table,
                ports=ports_of_others(numbers, table),
                run_dir=RUN_DIR,
                fresh=True,
                on_event=event_printer(console, table),
            ) as stack,
            httpx.AsyncClient(trust_env=False, timeout=REQUEST_TIMEOUT_S, headers=api_key) as client,
        ):
            for number in numbers:
                console.rule(f"{number} {table[number].title}", characters="-")
                steps[number] = await show(demos[number](client, stack.urls), console)
    except (StackError, ModelError) as exc:
        console.print(f"make demo: {exc}", markup=False, style="red", soft_wrap=True)
        return 1
    except asyncio.CancelledError:
        console.print("Interrupted; all stopped.")
        return INTERRUPTED
    console.print(summary(steps, table))
    wrong = [f"{step.method} {step.url}: {step.problem}" for done in steps.values() for step in done if step.problem]
    for line in wrong:
        console.print(f"WRONG: {line}", markup=False, style="bold red")
    outcome = f"{sum(map(len, steps.values()))} requests, {len(wrong)} wrong. All stopped."
    console.print(outcome)
    if svg is not None:
        draw(svg, summary(steps, table, is_brief=True), outcome)
    return 1 if wrong else 0


def ports_of_others(numbers: Sequence[str], table: Mapping[str, Pattern]) -> dict[str, int]:
    """Free ports of the patterns that these depend on: nobody asked for them, nor for their usual ports."""
    own = tuple(f"PORT_{number}_" for number in numbers)
    found = free_ports(numbers, table)
    return {name: port for name, port in found.items() if not (name.startswith(own) or os.environ.get(name))}


async def show(demo: AsyncGenerator[Step, None], console: Console) -> list[Step]:
    """Print the steps of a demo as they happen. It ends with the first wrong one: the rest may build on it."""
    steps = []
    async with contextlib.aclosing(demo):
        async for step in demo:
            steps.append(step)
            console.print(Text.assemble((f"{step.method:4} ", "bold cyan"), (str(step.url), "bold")), soft_wrap=True)
            if step.sent is not None:
                console.print(Text.assemble(("  sent ", "dim"), readable(step.sent)), soft_wrap=True)
            outcome = (f"  {step.status or '---'}  ", "red" if step.problem else "green")
            console.print(
                Text.assemble(outcome, readable(step.answer), (f"  {step.latency_ms:.1f} ms", "dim")), soft_wrap=True
            )
            if step.problem:
                console.print(Text(f"  WRONG: {step.problem}", style="bold red"))
                break
    return steps


def readable(value: object) -> str:
    """JSON for people: numbers to four digits; on one line if that is short, else one line for each entry."""
    line = on_one_line(value)
    if len(line) <= ONE_LINE or not isinstance(value, dict | list):
        return line
    items = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    entries = [("" if key is None else f"{json.dumps(key)}: ") + json.dumps(_rounded(item)) for key, item in items]
    return line[0] + f",\n{' ' * 8}".join(entries) + line[-1]


def on_one_line(value: object) -> str:
    """The same, however long."""
    return json.dumps(_rounded(value))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def summary(steps: Mapping[str, Sequence[Step]], table: Mapping[str, Pattern], *, is_brief: bool = False) -> Table:
    """One row for every highlight of every pattern; brief: of one line each, cut off where it ends."""
    rows = Table("pattern", "sent", "came back", "latency", "runs at", title="What was sent, and what came back")
    spelled = readable
    if is_brief:
        spelled = on_one_line
        for column in rows.columns[1:3]:
            column.no_wrap, column.width = True, PICTURE_CELL
    for number, done in steps.items():
        for step in done:
            if step.is_highlight or step.problem:
                rows.add_row(
                    f"{number} {table[number].title}",
                    f"{step.method} {step.url.path} {spelled(step.sent) if step.sent is not None else ''}",
                    step.problem or spelled(step.answer),
                    f"{step.latency_ms:.1f} ms",
                    f"{step.url.host}:{step.url.port}",
                )
        rows.add_section()
    return rows


def draw(svg: Path, rows: Table, outcome: str) -> None:
    """The end of a demo as a terminal shows it, in SVG that loads nothing from elsewhere."""
    console = Console(record=True, file=io.StringIO(), width=PICTURE_WIDTH, highlight=False)
    console.print(rows, outcome, sep="\n")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="make demo"), flags=re.DOTALL)
    svg.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
