"""Runs patterns as local processes, supervised as `restart: always` would.

    async with DevStack(["06"], ports=free_ports(["06"])) as stack:
        await client.get(stack.urls["PORT_06_PROXY"] + "/health")

    async with private_stack(["06"], folder) as stack:
        extra = await stack.start("06", definition)

Own code, because no well-kept library combines readiness, start order, restart with back-off and use inside a program:
honcho ends everything when one process ends, supervisor and circus are daemons that know "running" but not "ready", and
simpervisor has no start order, no back-off and signals single processes, not their groups.
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
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.table import HOST, ROOT, Pattern, ProcessDefinition
from serving_testing.processes import free_port

STOP_GRACE_S = 8.0
LAST_CALL_S = 0.5  # for a dependency, when the processes that depend on it took the whole grace to stop
POLL_S = 0.05
WATCH_S = 0.5  # between two looks at the source files
SHARED = ROOT / "common"  # source files of every process
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
class ManagedProcess:
    """A process of the table, prepared to start, and its state while a stack runs it."""

    id: str
    definition: ProcessDefinition
    argv: list[str]
    cwd: Path
    env: dict[str, str]
    is_ready: Callable[[], Awaitable[bool]]
    addresses: list[str]
    log: Path
    running: RunningProcess | None = None
    supervisor: asyncio.Task[None] | None = None
    exit_code: int | None = None
    is_serving: bool = False
    """Whether it has become ready since its last start, and has not ended."""
    ready_after_s: float = 0.0
    """From its last start until it was ready."""
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Its source files have changed: it starts again without back-off."""
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    @property
    def label(self) -> str:
        """As log lines and messages name it: "06 proxy"."""
        return self.id.replace("-", " ", 1)

    @property
    def url(self) -> str:
        """Base URL of its first port."""
        return f"http://{self.addresses[0].removeprefix('http://')}"

    @property
    def pid(self) -> int:
        """Its process id. Raises StackError while it does not run."""
        if self.running is None:
            raise StackError(f"{self.label} is not running")
        return self.running.handle.pid


@dataclass(frozen=True)
class RunningProcess:
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


class DevStack:
    """Starts patterns, and the processes of others that they depend on, on entry; stops all on exit, within 10 s.

    Entry builds the models that are missing. It raises StackError, with nothing left running, when a port is taken or
    a process does not become ready. `ports` and then the environment override the table's; `fresh` empties the
    patterns' state first. A process that keeps dying is started again after 0.5 s, 1 s, 2 s and so on, at most
    backoff_max_s. `reload` restarts Python modules when files of the pattern's src/ or of common/ change. on_output
    gets (label, lines) of what processes print, on_event (label, text) of what happens to them.
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
        reload: bool = False,
        backoff_max_s: float | None = None,
        on_output: Callable[[str, list[str]], None] = lambda label, lines: None,
        on_event: Callable[[str, str], None] = lambda label, text: None,
    ) -> None:
        self._table, self._environ = table, os.environ if environ is None else environ
        self.ports = _resolve_ports(table, self._environ) | dict(ports or {})
        self.run_dir, self._fresh, self._reload = run_dir, fresh, reload
        self._backoff_max_s = BACKOFF_MAX_S if backoff_max_s is None else backoff_max_s
        self._on_output, self._on_event = on_output, on_event
        self._exits = contextlib.AsyncExitStack()
        self._tell_watchdog: Callable[[str], None]
        self.processes = [self._prepare(*entry) for entry in _with_dependencies(numbers, table)]

    @property
    def urls(self) -> dict[str, str]:
        """Base URLs by port name, as "PORT_06_PROXY": "http://127.0.0.1:9000"."""
        return {name: f"http://{HOST}:{self.ports[name]}" for each in self.processes for name in each.definition.ports}

    @property
    def wanted_ports(self) -> set[int]:
        """The ports that its processes listen on."""
        return {self.ports[name] for each in self.processes for name in each.definition.ports}

    def process(self, id_: str) -> ManagedProcess:
        """The process of this id, as "06-proxy"."""
        return next(managed for managed in self.processes if managed.id == id_)

    async def __aenter__(self) -> Self:
        self._check_ports()
        numbers = {managed.id.partition("-")[0] for managed in self.processes}
        await build_models([artifact for number in sorted(numbers) for artifact in self._table[number].artifacts])
        for number in numbers if self._fresh else ():
            shutil.rmtree(self.run_dir / number, ignore_errors=True)
        async with contextlib.AsyncExitStack() as exits:
            self._tell_watchdog = await exits.enter_async_context(_watchdog())
            exits.push_async_callback(self._stop_all)
            await self._start_all()
            if self._reload:
                exits.callback(asyncio.create_task(self._watch_sources()).cancel)
                await asyncio.sleep(0)  # it has looked at the files before the caller can change one
            self._exits = exits.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._exits.aclose()

    async def start(self, number: str, definition: ProcessDefinition) -> ManagedProcess:
        """Start one more process of a pattern, supervised like the others. Draws free ports where it names new ones."""
        self.ports |= {name: free_port() for name in definition.ports if name not in self.ports}
        managed = self._prepare(self._table[number], definition)
        self.processes.append(managed)
        await self._start(managed)
        return managed

    async def stop(self, managed: ManagedProcess) -> int | None:
        """Stop one process for good: SIGTERM, and SIGKILL after the grace. Its exit code."""
        await self._stop(managed, time.monotonic() + STOP_GRACE_S)
        self.processes.remove(managed)
        return managed.exit_code

    async def wait(self, managed: ManagedProcess) -> int | None:
        """Wait until a process with restart=False exits. Its exit code."""
        await managed.stopped.wait()
        return managed.exit_code

    def _prepare(self, pattern: Pattern, definition: ProcessDefinition) -> ManagedProcess:
        values = {"root": ROOT, "state": self.run_dir / pattern.number, **self.ports}

        def fill(templates: Mapping[str, str]) -> dict[str, str]:
            return {name: template.format_map(values) for name, template in templates.items()}

        argv = [word.format_map(values) for word in definition.argv]
        named = {"OTEL_SERVICE_NAME": _id(pattern, definition)}
        env = named | fill(definition.defaults) | dict(self._environ) | fill(definition.env) | {"PYTHONUNBUFFERED": "1"}
        ready = definition.ready.format_map(values) if isinstance(definition.ready, str) else definition.ready
        addresses = [f"{HOST}:{self.ports[name]}" for name in definition.ports]
        return ManagedProcess(
            id=_id(pattern, definition),
            definition=definition,
            argv=[sys.executable, *argv[1:]] if argv[0] == "python" else argv,
            cwd=ROOT / (definition.folder or pattern.folder),
            env=env,
            is_ready=partial(ready, env) if callable(ready) else partial(is_answering, ready),
            addresses=[f"http://{at}" if str(ready).startswith(f"http://{at}/") else at for at in addresses],
            log=self.run_dir / "logs" / f"{_id(pattern, definition)}.log",
        )

    def _check_ports(self) -> None:
        problems, wanted_by = [], dict[int, str]()
        for managed in self.processes:
            for name in managed.definition.ports:
                port = self.ports[name]
                problem = f"is wanted by {wanted_by[port]} too" if port in wanted_by else why_unusable(port)
                wanted_by[port] = managed.label
                problems += [self._port_problem(managed, name, problem)] if problem else []
        if problems:
            raise StackError("\n".join(problems))

    def _port_problem(self, managed: ManagedProcess, name: str, problem: str) -> str:
        port = self.ports[name]
        return f"Port {port}, which {managed.label} wants, {problem}. To use another: {name}=<port> make up"

    def _lost_port(self, managed: ManagedProcess, is_lost: Callable[[int], bool]) -> str | None:
        """What to tell about its first port that somebody else has taken since they were checked."""
        lost = (name for name in managed.definition.ports if is_lost(self.ports[name]))
        return next((self._port_problem(managed, name, "is taken") for name in lost), None)

    # Start

    async def _start_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for managed in self.processes:
                    group.create_task(self._start(managed))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None  # the others were cancelled because of it

    async def _start(self, managed: ManagedProcess) -> None:
        for id_ in managed.definition.depends_on:
            await self.process(id_).ready.wait()
        (self.run_dir / managed.id.partition("-")[0]).mkdir(parents=True, exist_ok=True)
        managed.log.parent.mkdir(exist_ok=True)
        managed.log.unlink(missing_ok=True)
        running = await self._launch(managed)
        managed.ready.set()
        managed.supervisor = asyncio.create_task(self._keep_running(managed, running))

    async def _launch(self, managed: ManagedProcess) -> RunningProcess:
        """Start the process and wait until it is ready. Raises StackError if it exits before, or takes too long."""
        started = time.monotonic()
        limit_s = managed.definition.ready_within_s
        running = managed.running = await self._spawn(managed)
        self._tell_watchdog(f"+{running.handle.pid}")
        try:
            async with asyncio.timeout(limit_s):
                while not await managed.is_ready():
                    if running.handle.returncode is not None:
                        how = await self._ended(managed, running)
                        lost = self._lost_port(managed, lambda port: why_unusable(port) == "is taken")
                        raise StackError(lost or f"{managed.label} did not become ready: it {how}")
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            running.signal_group(signal.SIGKILL)
            await self._ended(managed, running)
            tail = _indented(managed.tail)
            raise StackError(f"{managed.label} did not become ready within {limit_s:g} s{tail}") from None
        # It may be another stack, started at the same moment, whose process has answered.
        if lost := self._lost_port(managed, partial(_is_strangers, running.handle.pid)):
            running.signal_group(signal.SIGKILL)
            await self._ended(managed, running)
            raise StackError(lost)
        managed.ready_after_s, managed.is_serving = time.monotonic() - started, True
        self._on_event(managed.label, f"ready after {managed.ready_after_s:.1f} s")
        return running

    async def _spawn(self, managed: ManagedProcess) -> RunningProcess:
        # A pipe of our own: with asyncio's, wait() returns only after grandchildren have closed their copies of it.
        read_end, write_end = os.pipe()
        try:
            output = asyncio.create_task(self._copy_output(managed, os.fdopen(read_end, "rb")))
            handle = await asyncio.create_subprocess_exec(
                *managed.argv,
                cwd=managed.cwd,
                env=managed.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=write_end,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as exc:
            raise StackError(f"{managed.label} cannot be started: {exc}") from exc
        finally:
            os.close(write_end)
        return RunningProcess(handle, output)

    async def _copy_output(self, managed: ManagedProcess, pipe: IO[bytes]) -> None:
        """Copy what the process prints to its log file and to on_output, until the last copy of the pipe is closed."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        unfinished = b""
        with contextlib.closing(transport), managed.log.open("ab", buffering=0) as log:
            while chunk := await reader.read(CHUNK_BYTES):
                log.write(chunk)
                *lines, unfinished = (unfinished + chunk).split(b"\n")
                if len(unfinished) > CHUNK_BYTES:
                    lines, unfinished = [*lines, unfinished], b""
                self._show(managed, lines)
        self._show(managed, [unfinished] if unfinished else [])

    # Keep running

    async def _keep_running(self, managed: ManagedProcess, running: RunningProcess | None) -> None:
        backoff_s = BACKOFF_FIRST_S
        ready_at = time.monotonic()
        while running is not None:
            what = await self._ended(managed, running)
            if not managed.definition.restart:
                managed.stopped.set()
                return
            if running.handle.returncode == 0 or time.monotonic() - ready_at > STABLE_AFTER_S:
                backoff_s = BACKOFF_FIRST_S
            running = None
            while running is None:
                if not managed.changed.is_set():
                    self._on_event(managed.label, f"{what}\nstarting again in {backoff_s:g} s")
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(backoff_s):
                            await managed.changed.wait()
                backoff_s = BACKOFF_FIRST_S if managed.changed.is_set() else min(2 * backoff_s, self._backoff_max_s)
                managed.changed.clear()
                try:
                    running = await self._launch(managed)
                    ready_at = time.monotonic()
                except StackError as exc:
                    what = str(exc)

    async def _ended(self, managed: ManagedProcess, running: RunningProcess) -> str:
        """Wait until the process has ended; how it did, with its last log lines if it failed."""
        code = await running.handle.wait()
        running.signal_group(signal.SIGKILL)  # children that it left behind may hold its port
        managed.is_serving = False
        managed.running, managed.exit_code = None, code  # from here on another process may get its process id
        self._tell_watchdog(f"-{running.handle.pid}")
        await asyncio.wait({running.output}, timeout=OUTPUT_TIMEOUT_S)
        if code == 0:
            return "exited with code 0"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return how + _indented(managed.tail)

    async def _watch_sources(self) -> None:
        """Restart every Python module whose pattern's src/, or common/, has a changed file."""
        # serving_testing starts the database servers, which have no sources here.
        modules = [each for each in self.processes if each.definition.argv[:2] == ("python", "-m")]
        roots = {
            each: (each.cwd / "src", SHARED) for each in modules if "serving_testing" not in each.definition.argv[2]
        }
        before = {root: _modified(root) for root in {root for pair in roots.values() for root in pair}}
        while True:
            await asyncio.sleep(WATCH_S)
            after = {root: await asyncio.to_thread(_modified, root) for root in before}
            changes = {root: sorted(dict(before[root].items() ^ after[root].items())) for root in before}
            for managed, pair in roots.items():
                if changed := [path for root in pair for path in changes[root]]:
                    self._on_event(managed.label, f"{changed[0].removeprefix(f'{ROOT}/')} has changed: restarting")
                    managed.changed.set()
                    if managed.running:
                        managed.running.signal_group(signal.SIGTERM)
            before = after

    # Stop

    async def _stop_all(self) -> None:
        for managed in self.processes:
            if managed.supervisor:
                managed.supervisor.cancel()  # all of them first: none may start a process again while others stop
        deadline = time.monotonic() + STOP_GRACE_S

        async def stop(managed: ManagedProcess) -> None:
            for other in self.processes:
                if managed.id in other.definition.depends_on:
                    await other.stopped.wait()
            await self._stop(managed, deadline)

        await asyncio.gather(*map(stop, self.processes))

    async def _stop(self, managed: ManagedProcess, deadline: float) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it at the deadline."""
        if managed.supervisor:
            managed.supervisor.cancel()
            await asyncio.wait({managed.supervisor})
        if running := managed.running:
            deadline = max(deadline, time.monotonic() + LAST_CALL_S)
            running.signal_group(signal.SIGTERM)
            # Polled, because a process group has no event to wait for.
            while time.monotonic() < deadline and running.signal_group(0):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)
            if running.signal_group(signal.SIGKILL):
                self._on_event(managed.label, f"killed: it did not stop within {STOP_GRACE_S:g} s of SIGTERM")
            await self._ended(managed, running)
            running.output.cancel()
            await asyncio.wait({running.output})
        managed.stopped.set()

    def _show(self, managed: ManagedProcess, raw_lines: Iterable[bytes]) -> None:
        lines = [line.decode(errors="replace").rstrip("\r") for line in raw_lines]
        managed.tail.extend(lines)
        self._on_output(managed.label, lines)


def private_stack(
    numbers: Iterable[str],
    run_dir: Path,
    *,
    table: Mapping[str, Pattern] = PATTERNS,
    ports: Mapping[str, int] | None = None,
    environ: Mapping[str, str] | None = None,
) -> DevStack:
    """A stack beside any other that runs: free ports, empty state in a folder of its own, and no access control.

    Programs start more processes in it, or kill some again and again: the back-off stays at its first value.
    """
    numbers = list(numbers)
    inherited = {name: os.environ[name] for name in os.environ.keys() - {"API_KEY", "API_KEY_FILE", "RATE_LIMIT"}}
    return DevStack(
        numbers,
        table=table,
        ports=free_ports(numbers, table) if ports is None else ports,
        environ=inherited | dict(environ or {}),
        run_dir=run_dir,
        fresh=True,
        backoff_max_s=BACKOFF_FIRST_S,
    )


def free_ports(numbers: Iterable[str], table: Mapping[str, Pattern] = PATTERNS) -> dict[str, int]:
    """A free port for every port of these patterns and of their dependencies, by port name."""
    return {name: free_port() for _, definition in _with_dependencies(numbers, table) for name in definition.ports}


def run(program: Coroutine[Any, Any, int]) -> int:
    """Like asyncio.run, for a program that stops itself when the first SIGINT, SIGTERM or SIGHUP cancels it.

    Later ones are ignored: stopping takes bounded time, and being interrupted would leave processes behind.
    """

    async def main() -> int:
        task = asyncio.create_task(program)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(signum, lambda: task.cancelling() or task.cancel())
        code = await task
        if task.cancelling() and threading.active_count() > 1:
            # A thread that waits for a response, or computes a baseline, cannot be cancelled; asyncio.run would wait.
            sys.stdout.flush()
            os._exit(code)
        return code

    return asyncio.run(main())


def _id(pattern: Pattern, definition: ProcessDefinition) -> str:
    return f"{pattern.number}-{definition.name}"


def _with_dependencies(numbers: Iterable[str], table: Mapping[str, Pattern]) -> list[tuple[Pattern, ProcessDefinition]]:
    """The processes of these patterns and, transitively, those that they depend on, in the table's order."""
    everything = {_id(pattern, each): (pattern, each) for pattern in table.values() for each in pattern.processes}
    wanted = [_id(table[number], each) for number in numbers for each in table[number].processes]
    for id_ in wanted:  # grows while it is walked
        wanted += [other for other in everything[id_][1].depends_on if other not in wanted]
    return [entry for id_, entry in everything.items() if id_ in wanted]


def _modified(root: Path) -> dict[str, int]:
    """When each source file below this folder was last modified, in ns."""
    found = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("__pycache__", "tests") and not name.startswith(".")]
        for path in (Path(folder, name) for name in files if not name.startswith(".")):
            with contextlib.suppress(OSError):  # editors' temporary files come and go
                found[str(path)] = path.stat().st_mtime_ns
    return found


def _resolve_ports(table: Mapping[str, Pattern], environ: Mapping[str, str]) -> dict[str, int]:
    ports = {}
    for pattern in table.values():
        for definition in pattern.processes:
            for name, default in definition.ports.items():
                ports[name] = port_from(name, default, environ)
    return ports


def port_from(name: str, default: int, environ: Mapping[str, str]) -> int:
    """The port of this name in the environment. Raises StackError for what is none."""
    text = environ.get(name) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise StackError(f"{name}={text}: a port is a number from 1 to 65535")
    return int(text)


def why_unusable(port: int) -> str | None:
    """Why no server of ours could listen on this port, as "is taken"; None if one could."""
    with socket.socket() as candidate:
        # As servers do: connections of an earlier run in TIME_WAIT do not matter, a listener does.
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((HOST, port))
        except OSError as exc:
            return "is taken" if exc.errno == errno.EADDRINUSE else f"cannot be used ({exc.strerror})"
    return None


def _is_strangers(group: int, port: int) -> bool:
    """Whether somebody listens on this port, and it is no process of the group (Linux; elsewhere nobody can tell)."""
    listeners = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for _, local, _, state, *more in map(str.split, Path(table).read_text().splitlines()[1:]):
                if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                    listeners.add(f"socket:[{more[5]}]")
    for process in Path("/proc").glob("[0-9]*") if listeners else ():
        descriptors: list[Path] = []
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if os.getpgid(int(process.name)) == group:
                descriptors = [*(process / "fd").iterdir()]
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed meanwhile
                if str(descriptor.readlink()) in listeners:
                    return False
    return bool(listeners)


async def is_answering(url: str | None) -> bool:
    """Whether a tcp:// address accepts, or an http:// URL answers 200. None: there is nothing to wait for."""
    if url is None:
        return True
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
