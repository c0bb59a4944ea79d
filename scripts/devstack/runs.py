"""What `make bench` and `make prove` share: profiles, one module for each pattern, and what happens when one fails."""

import argparse
import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypeVar

from rich.console import Console

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import DevStack, StackError, private_stack
from scripts.devstack.table import ROOT, Pattern
from scripts.devstack.terminal import parsed, parser_of_patterns
from serving_testing.redis_server import redis_binary

T = TypeVar("T")


class Profile(StrEnum):
    """How much is run: quick for the tests, short by default, long for the committed results."""

    QUICK = "quick"
    SHORT = "short"
    LONG = "long"


class SkippedError(Exception):
    """A pattern, or a part of one, cannot run on this machine; the text says why."""


def require_redis() -> None:
    """Raises SkippedError without a redis-server."""
    if redis_binary() is None:
        raise SkippedError("no redis-server found")


@dataclass(kw_only=True)
class PatternRun:
    """One pattern's part of a long command."""

    run_dir: ClassVar[Path] = ROOT / ".run"

    pattern: Pattern
    profile: Profile = Profile.SHORT
    say: Callable[[str], None] = lambda line: None
    error: str = ""
    """Why the run ended early."""
    skipped: list[str] = field(default_factory=list)
    """What could not run on this machine, with the reason."""
    started: float = field(default_factory=time.monotonic)
    seconds: float = 0.0

    @property
    def title(self) -> str:
        """Number and title, as "06 Horizontal microservices"."""
        return f"{self.pattern.number} {self.pattern.title}"

    def choose(self, *, quick: T, short: T, long: T) -> T:
        """The value for this run's profile."""
        return {Profile.QUICK: quick, Profile.SHORT: short, Profile.LONG: long}[self.profile]

    def skip(self, reason: str) -> None:
        """Record, and print, what cannot run on this machine."""
        self.skipped.append(reason)
        self.say(f"skipped: {reason}")

    def stack(
        self, pattern: Pattern, ports: Mapping[str, int] | None = None, environ: Mapping[str, str] | None = None
    ) -> DevStack:
        """A variant of the pattern and what it depends on, on free ports or these, with empty state."""
        table = PATTERNS | {pattern.number: pattern}
        return private_stack([pattern.number], self.run_dir, table=table, ports=ports, environ=environ)


R = TypeVar("R", bound=PatternRun)


def modules(package: str) -> dict[str, str]:
    """Names of the modules of this package that are about a pattern (`<package>.<Pattern.name>`), by its number."""
    named = {number: f"{package}.{pattern.name}" for number, pattern in PATTERNS.items()}
    return {number: name for number, name in named.items() if find_spec(name)}


async def run_each(runs: Sequence[R], console: Console, execute: Callable[[R], Awaitable[None]]) -> bool:
    """Execute one run after the other; False if Ctrl-C ended it early. A run that fails does not stop the others."""
    for run in runs:
        console.rule(run.title, characters="-")
        run.started = time.monotonic()
        try:
            await execute(run)
        except SkippedError as exc:
            run.skip(str(exc))
        except StackError as exc:
            run.error = str(exc)
        except asyncio.CancelledError:
            run.error = "interrupted"
            return False
        except Exception as exc:
            logging.exception("%s ended early", run.title)
            while isinstance(exc, ExceptionGroup):  # of the clients' task group
                exc = exc.exceptions[0]
            run.error = f"ended early: {type(exc).__name__}: {exc}"
        finally:
            run.seconds = time.monotonic() - run.started
        if run.error:
            console.print(f"FAILED: {run.title}: {run.error}", markup=False, style="bold red")
    return True


def parse(
    description: str | None,
    argv: Sequence[str] | None,
    known: Mapping[str, str],
    output: Path,
    add_options: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> argparse.Namespace:
    """The options of a long command: `patterns`, `profile`, `output`, and those that `add_options` adds."""
    parser = parser_of_patterns(description, known)
    add_options(parser)
    parser.add_argument("--profile", type=Profile, choices=[*Profile], default=Profile.SHORT, help="how much to run")
    parser.add_argument("--output", type=Path, default=output, help="folder for the results")
    return parsed(parser, argv, known)
