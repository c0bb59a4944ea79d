"""What a pattern is to the devstack: its folder, its models, and the processes that `make up` and `make demo` start.

Strings may hold placeholders, filled in when the process starts: `{PORT_…}` is the port of that name, of any pattern;
`{root}` the repository; `{state}` the pattern's own folder below `.run/`. A port's name is also the environment
variable that changes it: `PORT_06_PROXY=9100 make up`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"

# In-flight requests finish, and the process still exits before the stack's grace of 8 s ends.
STOP_IN_TIME = {"SHUTDOWN_GRACE_S": "6"}

ReadyCheck = Callable[[Mapping[str, str]], Awaitable[bool]]


@dataclass(frozen=True, kw_only=True)
class ProcessDefinition:
    """One process of a pattern, as the table describes it."""

    name: str
    argv: tuple[str, ...]
    """A first word `python` is the interpreter that runs this script."""
    folder: str = ""
    """Working directory, relative to the repository's root; the pattern's folder by default."""
    ports: Mapping[str, int] = field(default_factory=dict)
    """Default ports by the name of the environment variable that overrides them."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Fixed settings that identify this process: a HOST or PORT exported in the caller's shell must not win."""
    defaults: Mapping[str, str] = field(default_factory=dict)
    """Settings that the caller's environment overrides."""
    depends_on: tuple[str, ...] = ()
    """Ids of processes that are ready before this one starts, as "03-redis"; those of other patterns start too."""
    ready: str | ReadyCheck | None = None
    """An http:// URL that answers 200, a tcp:// address that accepts, or a check of the process's environment.
    None: ready as soon as it has started, for a job that works and exits."""
    metrics: str | None = None
    """URL of its page for Prometheus."""
    ready_within_s: float = 30
    restart: bool = True
    """Whether the supervisor starts it again after it has exited."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """One pattern: its folder, the models it serves (names that models.build knows) and its processes."""

    number: str
    title: str
    folder: str
    artifacts: tuple[str, ...] = ()
    published: Mapping[str, int] = field(default_factory=dict)
    """Ports of docker compose, as the pattern's README shows them, by the name of the port here."""
    vary: frozenset[str] = frozenset()
    """Keys of its responses whose values depend on which weights of its models were available."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files of the reader's own that its README names, and their stand-ins when the README is checked."""
    processes: tuple[ProcessDefinition, ...]

    @property
    def name(self) -> str:
        """The folder's name without number and suffix, as "horizontal_microservice"; modules about it are named so."""
        return self.folder.removeprefix(f"{self.number}_").removesuffix("_pattern")

    def without(self, *names: str) -> Pattern:
        """The pattern without these processes."""
        return replace(self, processes=tuple(each for each in self.processes if each.name not in names))

    def process(self, name: str) -> ProcessDefinition:
        """The process of this name."""
        return next(each for each in self.processes if each.name == name)

    def with_processes(self, *added: ProcessDefinition) -> Pattern:
        """The pattern with more processes."""
        return replace(self, processes=(*self.processes, *added))

    def with_changes(self, name: str, **changes: Any) -> Pattern:
        """The pattern with these fields of one process replaced."""
        processes = (replace(each, **changes) if each.name == name else each for each in self.processes)
        return replace(self, processes=tuple(processes))


def by_number(patterns: Iterable[Pattern]) -> dict[str, Pattern]:
    """The patterns in the order of their numbers."""
    return {pattern.number: pattern for pattern in sorted(patterns, key=lambda pattern: pattern.number)}


def web_process(name: str, module: str, port: str, default: int, **options: Any) -> ProcessDefinition:
    """A service of ours: `python -m module`, listening on the port of this name, ready when /health answers."""
    env = {**options.pop("env", {}), "HOST": HOST, "PORT": f"{{{port}}}"}
    return ProcessDefinition(
        name=name,
        argv=("python", "-m", *module.split()),
        ports={port: default},
        env=env,
        defaults=STOP_IN_TIME | options.pop("defaults", {}),
        ready=f"http://{HOST}:{{{port}}}/health",
        metrics=f"http://{HOST}:{{{port}}}/metrics",
        **options,
    )


def redis_process(
    port: str, default: int, *options: str, name: str = "redis", folder: str = "{state}"
) -> ProcessDefinition:
    """A private redis-server whose append-only file is in the pattern's state folder."""
    return ProcessDefinition(
        name=name,
        argv=("python", "-m", "serving_testing.redis_server", f"{{{port}}}", folder, *options),
        ports={port: default},
        ready=f"tcp://{HOST}:{{{port}}}",
    )


def mysql_process(port: str, *options: str, name: str = "database", folder: str = "{state}") -> ProcessDefinition:
    """A private mariadbd or mysqld with an empty database `items`, in the pattern's state folder."""
    return ProcessDefinition(
        name=name,
        argv=("python", "-m", "serving_testing.mysql_server", f"{{{port}}}", folder, *options),
        ports={port: 1},
        ready=f"tcp://{HOST}:{{{port}}}",
        ready_within_s=60,
    )
