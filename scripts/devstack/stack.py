"""Runs patterns as local processes, supervised as `restart: always` would.

    async with Stack(["06"], ports=free_ports(["06"])) as stack:
        await client.get(stack.urls["PORT_06_PROXY"] + "/health")

Own code, because no well-kept library has readiness, start order, restart with back-off and use inside a program in
one: honcho ends everything when one process ends, supervisor and circus are daemons that know "running" but not
"ready", and simpervisor has no start order, no back-off and signals single processes, not their groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import socket
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from scripts.devstack.patterns import PATTERNS, Pattern, Process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from scripts.devstack.patterns import ReadyCheck

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"

STOP_GRACE_S = 8.0
LAST_CALL_S = 0.5  # for what others need, when those took the whole grace to stop
POLL_S = 0.05
PROBE_TIMEOUT_S = 1.0
OUTPUT_TIMEOUT_S = 0.5  # for the last lines, when a process that left the group still holds the pipe
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STABLE_AFTER_S = 10.0  # a process that lived this long starts again at the first back-off
TAIL_LINES = 15
CHUNK_BYTES = 64 * 1024


class StackError(Exception):
    """The stack cannot be started; the text says why and is written for the person at the terminal."""


@dataclass(eq=False, kw_only=True)
class Supervised:
    """A process of the table, made ready to start, and what is known of it while a stack runs it."""

    id: str
    process: Process
    argv: list[str]
    cwd: Path
    env: dict[str, str]
    is_ready: Callable[[], Awaitable[bool]]
    addresses: list[str]
    log: Path
    running: Running | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def label(self) -> str:
        """As log lines and messages name it: "06 proxy"."""
        return self.id.replace("-", " ", 1)


@dataclass(frozen=True)
class Running:
    """One start of a process, which leads a process group of its own, and the task that copies what it prints."""

    handle: asyncio.subprocess.Process
    output: asyncio.Task[None]

    def signal_group(self, signum: int) -> bool:
        """Send a signal to all that is left of the group; whether anything was."""
        try:
            os.killpg(self.handle.pid, signum)
        except (ProcessLookupError, PermissionError):  # PermissionError: macOS, when only zombies are left
            return False
        return True


class Stack:
    """Starts patterns, and what they need of others, on entry; stops every process on exit, within 10 s.

    Entry builds the models that are missing. It raises StackError, with nothing left running, when a port is taken or
    a process does not become ready. `ports` and then the environment win over the table's; `fresh` empties the
    patterns' state first. A process that dies again and again is started again after 0.5 s, 1 s, 2 s and so on, at most
    backoff_max_s. on_output gets (label, lines) of what processes print, on_event (label, text) of what
    happens to them.
    """

    def __init__(
        self,
        numbers: Iterable[str],
        *,
        table: Mapping[str, Pattern] = PATTERNS,
        ports: Mapping[str, int] | None = None,
        environ: Mapping[str, str] | None = None,
        run_dir: Path = ROOT / ".run",
        fresh: bool = False,
        backoff_max_s: float | None = None,
        on_output: Callable[[str, list[str]], None] = lambda label, lines: None,
        on_event: Callable[[str, str], None] = lambda label, text: None,
    ) -> None:
        environ = os.environ if environ is None else environ
        self._ports = _resolve_ports(table, environ) | dict(ports or {})
        self._run_dir, self._fresh = run_dir, fresh
        self._backoff_max_s = BACKOFF_MAX_S if backoff_max_s is None else backoff_max_s
        self._on_output, self._on_event = on_output, on_event
        self._keepers: list[asyncio.Task[None]] = []
        self._exits = contextlib.AsyncExitStack()
        self._tell_watchdog: Callable[[str], None]
        self.processes = [self._prepare(*entry, environ) for entry in _with_needs(numbers, table)]
        self._patterns = [table[n] for n in sorted({supervised.id.split("-")[0] for supervised in self.processes})]

    @property
    def urls(self) -> dict[str, str]:
        """Base URLs by port name, as "PORT_06_PROXY": "http://127.0.0.1:9000"."""
        return {
            name: f"http://{HOST}:{self._ports[name]}"
            for supervised in self.processes
            for name in supervised.process.ports
        }

    async def __aenter__(self) -> Self:
        self._check_ports()
        await build_models([artifact for pattern in self._patterns for artifact in pattern.artifacts])
        for pattern in self._patterns:
            state = self._run_dir / pattern.number
            if self._fresh:
                shutil.rmtree(state, ignore_errors=True)
            state.mkdir(parents=True, exist_ok=True)
        (self._run_dir / "logs").mkdir(exist_ok=True)
        async with contextlib.AsyncExitStack() as exits:
            self._tell_watchdog = await exits.enter_async_context(_watchdog())
            exits.push_async_callback(self._stop_all)
            await self._start_all()
            self._keepers = [asyncio.create_task(self._keep_running(each)) for each in self.processes]
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._exits.aclose()

    def _prepare(self, pattern: Pattern, process: Process, environ: Mapping[str, str]) -> Supervised:
        values = {"root": ROOT, "state": self._run_dir / pattern.number, **self._ports}

        def fill(templates: Mapping[str, str]) -> dict[str, str]:
            return {name: template.format_map(values) for name, template in templates.items()}

        argv = [word.format_map(values) for word in process.argv]
        env = fill(process.defaults) | dict(environ) | fill(process.env) | {"PYTHONUNBUFFERED": "1"}
        ready = process.ready.format_map(values) if isinstance(process.ready, str) else process.ready
        addresses = [f"{HOST}:{self._ports[name]}" for name in process.ports]
        return Supervised(
            id=_id(pattern, process),
            process=process,
            argv=[sys.executable, *argv[1:]] if argv[0] == "python" else argv,
            cwd=ROOT / pattern.folder,
            env=env,
            is_ready=_readiness(ready, env),
            addresses=[f"http://{at}" if str(ready).startswith(f"http://{at}/") else at for at in addresses],
            log=self._run_dir / "logs" / f"{_id(pattern, process)}.log",
        )

    def _check_ports(self) -> None:
        problems = []
        wanted_by: dict[int, str] = {}
        for supervised in self.processes:
            for name in supervised.process.ports:
                port = self._ports[name]
                problem = f"is wanted by {wanted_by[port]} too" if port in wanted_by else _why_unusable(port)
                wanted_by[port] = supervised.label
                if problem:
                    problems.append(
                        f"Port {port}, which {supervised.label} wants, {problem}. To use another: {name}=<port> make up"
                    )
        if problems:
            raise StackError("\n".join(problems))

    # Start

    async def _start_all(self) -> None:
        by_id = {supervised.id: supervised for supervised in self.processes}

        async def start(supervised: Supervised) -> None:
            for need in supervised.process.needs:
                await by_id[need].ready.wait()
            await self._launch(supervised)
            supervised.ready.set()

        try:
            async with asyncio.TaskGroup() as group:
                for supervised in self.processes:
                    supervised.log.unlink(missing_ok=True)
                    group.create_task(start(supervised))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled because of it

    async def _launch(self, supervised: Supervised) -> Running:
        """Start the process and wait until it is ready. Raises StackError if it exits before, or takes too long."""
        started = time.monotonic()
        limit_s = supervised.process.ready_within_s
        running = supervised.running = await self._spawn(supervised)
        self._tell_watchdog(f"+{running.handle.pid}")
        try:
            async with asyncio.timeout(limit_s):
                while not await supervised.is_ready():
                    if running.handle.returncode is not None:
                        how = await self._ended(supervised, running)
                        raise StackError(f"{supervised.label} did not become ready: it {how}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            running.signal_group(signal.SIGKILL)
            await self._ended(supervised, running)
            tail = _indented(supervised.tail)
            raise StackError(f"{supervised.label} did not become ready within {limit_s:g} s{tail}") from None
        self._on_event(supervised.label, f"ready after {time.monotonic() - started:.1f} s")
        return running

    async def _spawn(self, supervised: Supervised) -> Running:
        # A pipe of our own: with asyncio's, wait() returns only after grandchildren have closed their copies of it.
        read_end, write_end = os.pipe()
        try:
            output = asyncio.create_task(self._copy_output(supervised, os.fdopen(read_end, "rb")))
            handle = await asyncio.create_subprocess_exec(
                *supervised.argv,
                cwd=supervised.cwd,
                env=supervised.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            raise StackError(f"{supervised.label} cannot be started: {exc}") from exc
        finally:
            os.close(write_end)
        return Running(handle, output)

    async def _copy_output(self, supervised: Supervised, pipe: IO[bytes]) -> None:
        """Copy what the process prints to its log file and to on_output, until nobody holds the pipe any more."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        unfinished = b""
        with contextlib.closing(transport), supervised.log.open("ab", buffering=0) as log:
            while chunk := await reader.read(CHUNK_BYTES):
                log.write(chunk)
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                if len(unfinished) > CHUNK_BYTES:
                    lines, unfinished = [*lines, unfinished], b""
                self._show(supervised, lines)
        self._show(supervised, [unfinished] if unfinished else [])

    # Keep running

    async def _keep_running(self, supervised: Supervised) -> None:
        backoff_s = BACKOFF_FIRST_S
        ready_at = time.monotonic()
        running = supervised.running
        while running is not None:
            what = await self._ended(supervised, running)
            if running.handle.returncode == 0 or time.monotonic() - ready_at > STABLE_AFTER_S:
                backoff_s = BACKOFF_FIRST_S
            running = None
            while running is None:
                self._on_event(supervised.label, f"{what}\nstarting again in {backoff_s:g} s")
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, self._backoff_max_s)
                try:
                    running = await self._launch(supervised)
                    ready_at = time.monotonic()
                except StackError as exc:
                    what = str(exc)

    async def _ended(self, supervised: Supervised, running: Running) -> str:
        """Wait until the process has ended; how it did, with its last log lines if it failed."""
        code = await running.handle.wait()
        running.signal_group(signal.SIGKILL)  # children that it left behind may hold its port
        supervised.running = None  # from here on its process id may be somebody else's
        self._tell_watchdog(f"-{running.handle.pid}")
        await asyncio.wait({running.output}, timeout=OUTPUT_TIMEOUT_S)
        if code == 0:
            return "exited with code 0"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return how + _indented(supervised.tail)

    # Stop

    async def _stop_all(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        deadline = time.monotonic() + STOP_GRACE_S
        await asyncio.gather(*(self._stop(supervised, deadline) for supervised in self.processes))

    async def _stop(self, supervised: Supervised, deadline: float) -> None:
        """SIGTERM to the group, once the processes that need it are gone; SIGKILL to what is left at the deadline."""
        for other in self.processes:
            if supervised.id in other.process.needs:
                await other.stopped.wait()
        if running := supervised.running:
            deadline = max(deadline, time.monotonic() + LAST_CALL_S)
            running.signal_group(signal.SIGTERM)
            # Polled, because a process group has no event to wait for.
            while time.monotonic() < deadline and running.signal_group(0):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            if running.signal_group(signal.SIGKILL):
                self._on_event(supervised.label, f"killed: it did not stop within {STOP_GRACE_S:g} s of SIGTERM")
            await self._ended(supervised, running)
            running.output.cancel()
            await asyncio.wait({running.output})
        supervised.stopped.set()

    def _show(self, supervised: Supervised, raw_lines: Iterable[bytes]) -> None:
        lines = [line.decode(errors="replace").rstrip("\r") for line in raw_lines]
        supervised.tail.extend(lines)
        self._on_output(supervised.label, lines)


def private_stack(
    numbers: Iterable[str],
    run_dir: Path,
    *,
    table: Mapping[str, Pattern] = PATTERNS,
    ports: Mapping[str, int] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Stack:
    """A stack beside any other that runs: free ports, empty state in a folder of its own, and open to all clients.

    It is for programs, who may kill its processes again and again, and do not wait for them longer each time.
    """
    numbers = list(numbers)
    closing = {"API_KEY", "API_KEY_FILE", "RATE_LIMIT"}
    inherited = {name: value for name, value in os.environ.items() if name not in closing}
    return Stack(
        numbers,
        table=table,
        ports=free_ports(numbers, table) if ports is None else ports,
        environ=inherited | dict(environ or {}),
        run_dir=run_dir,
        fresh=True,
        backoff_max_s=BACKOFF_FIRST_S,
    )


def free_ports(numbers: Iterable[str], table: Mapping[str, Pattern] = PATTERNS) -> dict[str, int]:
    """A free port for every port of these patterns and of what they need, by port name."""
    names = [name for _, process in _with_needs(numbers, table) for name in process.ports]
    with contextlib.ExitStack() as held:  # all at once, or the same port could be drawn twice
        sockets = [held.enter_context(socket.socket()) for _ in names]
        for each in sockets:
            each.bind((HOST, 0))
        return {name: each.getsockname()[1] for name, each in zip(names, sockets, strict=True)}


def run(program: Coroutine[Any, Any, int]) -> int:
    """Like asyncio.run, for a program that stops itself when the first SIGINT, SIGTERM or SIGHUP cancels it.

    Later ones are ignored: stopping takes bounded time, and being interrupted would leave processes behind.
    """

    async def main() -> int:
        task = asyncio.create_task(program)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, lambda: task.cancelling() or task.cancel())
        return await task

    return asyncio.run(main())


def _id(pattern: Pattern, process: Process) -> str:
    return f"{pattern.number}-{process.name}"


def _with_needs(numbers: Iterable[str], table: Mapping[str, Pattern]) -> list[tuple[Pattern, Process]]:
    """The processes of these patterns and, transitively, the ones that they need, in the table's order."""
    everything = {
        _id(pattern, process): (pattern, process) for pattern in table.values() for process in pattern.processes
    }
    wanted = [_id(table[number], process) for number in numbers for process in table[number].processes]
    for id_ in wanted:  # grows while it is walked
        wanted += [need for need in everything[id_][1].needs if need not in wanted]
    return [entry for id_, entry in everything.items() if id_ in wanted]


def _resolve_ports(table: Mapping[str, Pattern], environ: Mapping[str, str]) -> dict[str, int]:
    ports = {}
    for pattern in table.values():
        for process in pattern.processes:
            for name, default in process.ports.items():
                text = environ.get(name) or str(default)
                if not text.isdecimal() or not 1 <= int(text) <= 65535:
                    raise StackError(f"{name}={text}: a port is a number from 1 to 65535")
                ports[name] = int(text)
    return ports


def _why_unusable(port: int) -> str | None:
    with socket.socket() as probe:
        # As servers do: connections of an earlier run that linger in TIME_WAIT are no obstacle, a listener is.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as exc:
            return "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be used ({exc.strerror})"
    return None


def _readiness(ready: str | ReadyCheck | None, env: Mapping[str, str]) -> Callable[[], Awaitable[bool]]:
    if callable(ready):
        return partial(ready, env)
    return partial(answers, ready) if ready else _at_once


async def _at_once() -> bool:
    return True


async def answers(url: str) -> bool:
    """Whether a tcp:// address accepts, or an http:// URL answers 200."""
    at = urlsplit(url)
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            with contextlib.closing(writer):
                if at.scheme == "tcp":
                    return True
                writer.write(f"GET {at.path} HTTP/1.0\r\nHost: {at.netloc}\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
    except (OSError, TimeoutError):
        return False


@contextlib.asynccontextmanager
async def _watchdog() -> AsyncIterator[Callable[[str], None]]:
    """Runs scripts.devstack.watchdog; what is yielded writes one line to it."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as stdin, os.fdopen(write_end, "w", buffering=1) as lifeline:
        watchdog = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.devstack.watchdog"),
            cwd=ROOT,
            stdin=stdin,
            start_new_session=True,  # a Ctrl-C at the terminal must not end it first
        )
        stdin.close()
        try:
            yield lambda line: print(line, file=lifeline)
        finally:
            lifeline.close()
            await watchdog.wait()


async def build_models(artifacts: Sequence[str]) -> None:
    """Build what is missing; seconds when nothing is. Raises StackError when the build fails."""
    if not artifacts:
        return
    build = await asyncio.create_subprocess_exec(sys.executable, "-m", "models.build", "--only", *artifacts, cwd=ROOT)
    try:
        code = await build.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            build.terminate()
        await build.wait()
        raise
    if code:
        raise StackError(f"the models could not be built: models.build exited with code {code}")


def _indented(lines: Iterable[str]) -> str:
    return "".join(f"\n    {line}" for line in lines)
