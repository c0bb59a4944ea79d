"""Every alert against real faults: `make prove PROVE=alerts`, or PROVE="alerts long" with ten quiet minutes before.

It injects one fault of cases.py after the other into the patterns of testbed.py. Each must fire its alerts and no
other, of any pattern; the quiet time must fire none. At the end no query of any dashboard may be empty. The results are
alerts.md, a matrix of faults and alerts, and alerts.json.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

from deploy.observability.cases import ALL, CASES, FaultCase
from deploy.observability.dashboards import queries
from deploy.observability.live import empty_queries
from deploy.observability.testbed import FACTOR, Testbed, patterns_under_load, table
from scripts.devstack import metrics
from scripts.devstack.faults import FaultNotInjected
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import Profile
from scripts.devstack.stack import StackError, run
from scripts.devstack.table import ROOT
from scripts.devstack.terminal import parsed, parser_of_patterns
from serving_testing.mysql_server import mysql_binary
from serving_testing.redis_server import redis_binary

QUIET = "none"
QUIET_S = {Profile.QUICK: 0, Profile.SHORT: 300, Profile.LONG: 600}
FIRES_WITHIN_S = 240
SETTLE_S = 2 * 60 / FACTOR + 2  # in which any other alert would fire: most wait for at most two minutes
POLL_S = 0.5


@dataclass(kw_only=True)
class CaseResult:
    """What a fault has fired."""

    pattern: str
    fault: str
    process: str
    expected: list[str]
    """As "ProcessDown 03": alert and pattern."""
    may: list[str] = field(default_factory=list)
    """What may fire, too."""
    fired: list[str] = field(default_factory=list)
    seconds: float | None = None
    """From the fault until the last expected alert fired; None if not all did, or none was expected."""
    error: str = ""

    @property
    def title(self) -> str:
        """As "03 hang worker"."""
        return f"{self.pattern} {self.fault} {self.process}"

    @property
    def is_passed(self) -> bool:
        """Whether the expected alerts fired, and none that must not."""
        return {*self.expected} <= {*self.fired} <= {*self.expected, *self.may} and not self.error

    def __str__(self) -> str:
        after = f" after {self.seconds} s" if self.seconds else ""
        fired = f"{self.title}: {', '.join(self.fired) or 'none'}{after}"
        if self.is_passed:
            return f"ok      {fired}"
        return f"FAILED  {fired}; expected: {', '.join(self.expected) or 'none'} {self.error}"


def alert_names() -> list[str]:
    """All alerts of the rules."""
    groups = [group for path in metrics.RULES for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]]
    return sorted(rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule)


async def watch_quiet(bed: Testbed, seconds: float) -> CaseResult:
    """A time without faults."""
    started = time.monotonic()
    await asyncio.sleep(seconds)
    fired = sorted(await bed.fired(started))
    return CaseResult(pattern=ALL, fault=QUIET, process=f"{seconds / 60:g} minutes", expected=[], fired=fired)


async def try_case(bed: Testbed, case: FaultCase) -> CaseResult:
    """Inject a fault, and watch until everything is as before, and for a while longer."""
    outcome = CaseResult(
        pattern=case.pattern,
        fault=case.fault,
        process=case.process,
        expected=sorted(case.alerts),
        may=sorted(case.may),
    )
    started, before = time.monotonic(), set[str]()
    try:
        if case.needs_history:
            before = await bed.fired(started)  # the fault before, in windows that have not ended
        else:
            await bed.forget()
            started = time.monotonic()
        async with case.inject(bed):
            injected = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRES_WITHIN_S):
                    while not case.alerts <= await bed.fired(started):  # noqa: ASYNC110 - Prometheus has no event
                        await asyncio.sleep(POLL_S)
                    outcome.seconds = round(time.monotonic() - injected, 1) if case.alerts else None
            await asyncio.sleep(0 if case.is_brief else SETTLE_S)
        await bed.wait_well()
        await asyncio.sleep(SETTLE_S)
    except (StackError, FaultNotInjected, TimeoutError, httpx.HTTPError) as exc:
        outcome.error = f"{type(exc).__name__}: {exc}"
    outcome.fired = sorted(await bed.fired(started) - before)
    return outcome


def missing() -> str:
    """What this machine lacks; empty if it is all there."""
    if metrics.NUMBER not in table():
        return metrics.MISSING
    if redis_binary() is None:
        return "no redis-server found"
    return "" if mysql_binary() else "neither mariadbd nor mysqld is installed"


def matrix(
    outcomes: Sequence[CaseResult], empty: Sequence[str] | None, profile: Profile, names: Sequence[str]
) -> Iterator[str]:
    """Lines of alerts.md; `names` are the alerts."""
    command = f'make prove PROVE="alerts{"" if profile is Profile.SHORT else f" {profile}"}"'
    yield f"# Faults and the alerts that they fire\n\n`{command}` on {described()}.\n"
    yield f"The windows of the rules and the waiting times of their alerts were {FACTOR} times shorter than in"
    yield "[deploy/observability](../../deploy/observability/README.md), as were the intervals and the objective of 04."
    yield "**●** fired, as it must; **○** fired, as it may; **missing** did not fire; **wrong** fired and must not; the"
    yield "number is the pattern. An outage of a second fails about as many requests as the rules tolerate, and"
    yield "requests that wait for a store are slow before they fail. A fault that was tried again alone has its new"
    yield "line.\n"
    yield f"| fault | {' | '.join(str(number) for number, _ in enumerate(names, 1))} | after |"
    yield f"| --- | {' | '.join(':-:' for _ in names)} | ---: |"
    for outcome in outcomes:
        cells = [_cell(outcome, name) for name in names]
        after = f"{outcome.seconds:.0f} s" if outcome.seconds else ""
        note = f" ({outcome.error})" if outcome.error else ""
        yield f"| {outcome.title}{note} | {' | '.join(cells)} | {after} |"
    yield ""
    yield from (f"{number}. [{name}](../runbook.md#{name.lower()})" for number, name in enumerate(names, 1))
    if empty is None:
        yield "\nIt ended before the queries of the dashboards were tried."
        return
    yield f"\n{len(queries()) - len(empty)} of {len(queries())} queries of the dashboards had values under this load."
    yield from (f"- empty: {each}" for each in empty)


def _cell(outcome: CaseResult, name: str) -> str:
    """The patterns for which this alert fired, or did not."""
    found = []
    for alert in sorted({*outcome.expected, *outcome.fired}):
        what, _, pattern = alert.partition(" ")
        if what == name:
            must = "●" if alert in outcome.fired else "missing"
            mark = must if alert in outcome.expected else "○" if alert in outcome.may else "wrong"
            found.append(f"{mark} {pattern}")
    return ", ".join(found)


def write(outcomes: Sequence[CaseResult], empty: Sequence[str] | None, profile: Profile, folder: Path) -> None:
    """Write alerts.md and alerts.json; faults not tried this time keep what the file says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "alerts.json"
    known: dict[str, Any] = {"cases": [], "profile": profile}
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
    found = {each.title: each for each in (*(CaseResult(**each) for each in known["cases"]), *outcomes)}
    quiet = [title for title, each in found.items() if each.fault == QUIET][-1:]
    if not any(each.fault == QUIET for each in outcomes):
        profile = Profile(known["profile"])  # the quiet time is the profile
    outcomes = [found[title] for title in (*quiet, *(case.title for case in CASES)) if title in found]
    content = {
        "machine": described(),
        "profile": profile,
        "factor": FACTOR,
        "cases": [asdict(outcome) for outcome in outcomes],
        "queries": len(queries()),
        "empty_queries": empty,
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (folder / "alerts.md").write_text(
        "\n".join(matrix(outcomes, empty, profile, alert_names())) + "\n", encoding="utf-8"
    )
    print(f"Written: {folder / 'alerts.md'}, {path}")


async def try_all(numbers: Sequence[str], profile: Profile, only: str, output: Path) -> int:
    """Exit code: 0 if every fault fired its alerts and no other, and no query of a dashboard was empty."""
    if reason := missing():
        print(reason)
        return 1
    outcomes: list[CaseResult] = []
    empty: list[str] | None = None
    async with patterns_under_load(numbers) as bed:
        print(f"The times of the rules are {FACTOR} times shorter.", flush=True)
        await bed.forget()
        try:
            if QUIET_S[profile]:
                outcomes.append(await watch_quiet(bed, QUIET_S[profile]))
                print(outcomes[-1], flush=True)
            for case in CASES:
                if case.pattern not in [*numbers, ALL] or not re.search(only, case.title):
                    continue
                outcomes.append(await try_case(bed, case))
                print(outcomes[-1], flush=True)
            empty = await empty_queries(bed.client, bed.stack.urls["PORT_PROMETHEUS"])
        finally:
            write(outcomes, empty, profile, output)
    print("\n".join([*empty, f"{len(queries()) - len(empty)} of {len(queries())} queries have values"]))
    return int(bool(empty) or not all(each.is_passed for each in outcomes))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = parser_of_patterns(__doc__, PATTERNS)
    parser.add_argument("--profile", type=Profile, choices=[*Profile], default=Profile.SHORT, help="the quiet time")
    parser.add_argument("--only", default="", help='regular expression of faults, as "03 (hang|stop)"')
    parser.add_argument("--output", type=Path, default=ROOT / "prove-results")
    options = parsed(parser, arguments, PATTERNS)
    return run(try_all(options.patterns, options.profile, options.only, options.output))


if __name__ == "__main__":
    sys.exit(main())
