"""Takes the console's pictures for the READMEs from a real run: `python -m scripts.devstack.console.screenshots`.

It does what a first-time visitor does after `make up`: opens the console, sends a request, starts a load, kills a
worker, and waits until all of 3,000 jobs are completed. It prints when, from the start of the first process on, and
fails if a job was lost, done twice or stuck, or if all of it took longer than two minutes. On a slow machine, numbers
of patterns, 03 among them, leave out the others, and --within gives it more time.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from anyio.from_thread import start_blocking_portal

from scripts.devstack import spans
from scripts.devstack.console import app
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import private_stack
from scripts.devstack.table import ROOT
from scripts.devstack.terminal import parsed, parser_of_patterns
from serving_testing.browser import chromium, text, until, wait_for

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

JOBS = 3_000
WITHIN_S = 120.0
LOAD_WITHIN_S = 180  # a machine that is busy with other things sends less than 100 a second
WIDTH = 1080
DOCS = ROOT / "docs"


def main() -> int:
    """Exit code: 0 if nothing was lost."""
    parser = parser_of_patterns(__doc__, PATTERNS)
    parser.add_argument("--within", type=float, default=WITHIN_S, metavar="SECONDS", help="default: %(default)g")
    options = parsed(parser, None, PATTERNS)
    store = spans.SpanStore()
    started = time.monotonic()
    with (
        TemporaryDirectory() as folder,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(spans.serving(store)) as receiver,
    ):
        stack = private_stack(options.patterns, Path(folder), environ=spans.variables(receiver))
        with (
            portal.wrap_async_context_manager(app.serving(stack, PATTERNS, 0, store)) as address,
            portal.wrap_async_context_manager(stack),
            chromium() as page,
        ):
            return visit(page, address, started, options.within)


def visit(page: Chrome, address: str, started: float, within_s: float) -> int:
    """Take both pictures; 0 if nothing was lost, and all was done within this time after the start."""

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {line}")

    page.get(address)
    wait_for(page, "#cards svg .state")
    say("the overview is there")
    press(page, 'nav a[href="#03"]')
    until(page, lambda: value(page, "path") == "/predict")
    press(page, "#request button")
    wait_for(page, "#timeline .bar")
    say(f"a request has its answer and a timeline of {count(page, '#timeline li')} spans")
    press(page, '#rates [value="100"]')
    until(page, lambda: number(page, "accepted") >= JOBS / 3, LOAD_WITHIN_S)
    press(page, '[aria-label="kill -9: 03 worker"]')
    until(page, lambda: "SIGKILL" in text(page, "#outcome"))
    say(f"{text(page, '#outcome')} {number(page, 'accepted'):,} jobs were accepted")
    until(page, lambda: number(page, "accepted") >= JOBS, LOAD_WITHIN_S)
    press(page, '#rates [value="0"]')
    until(page, lambda: number(page, "completed") == number(page, "accepted"), LOAD_WITHIN_S)
    what = ("accepted", "completed", "lost", "twice", "stuck", "refused")
    tally = {name: number(page, name) for name in what}
    took_s = time.monotonic() - started
    say(", ".join(f"{each:,} {name}" for name, each in tally.items()))
    picture(page, DOCS / "console-03.png")
    press(page, '#rates [value="10"]')
    press(page, 'nav a[href="#overview"]')
    wait_for(page, "#cards .busy")
    picture(page, DOCS / "console.png")
    return int(took_s > within_s or any(tally[name] for name in ("lost", "twice", "stuck")))


def picture(page: Chrome, path: Path) -> None:
    """The whole page, as wide as in a README."""
    size = {"width": WIDTH, "height": 1, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # the height depends on the width
    size["height"] = page.execute_script("return document.body.scrollHeight")
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.save_screenshot(str(path))
    print(f"written: {path.relative_to(ROOT)}, {path.stat().st_size / 1000:.0f} kB")


def press(page: Chrome, selector: str) -> None:
    """Click on the first element of this selector, wherever it is on the page."""
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


def value(page: Chrome, id_: str) -> str:
    """The text in a field."""
    return str(page.execute_script("return document.getElementById(arguments[0]).value", id_))


def number(page: Chrome, id_: str) -> int:
    """The counter of this name."""
    return int(text(page, f"#{id_}").replace(",", ""))


def count(page: Chrome, selector: str) -> int:
    """How many elements there are."""
    return int(page.execute_script("return document.querySelectorAll(arguments[0]).length", selector))


if __name__ == "__main__":
    sys.exit(main())
