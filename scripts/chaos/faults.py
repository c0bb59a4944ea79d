"""Faults: processes that are killed or hang, ports that receive garbage, services that answer with garbage."""

import asyncio
import contextlib
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self

from scripts.devstack.stack import ManagedProcess, RunningProcess
from scripts.devstack.table import HOST, Pattern, ProcessDefinition

STARTED_AGAIN_POLL_S = 0.02
GARBAGE_BYTES = 4096
HANG_UP_AFTER_S = 0.2


def with_workers(pattern: Pattern, count: int, **variables: str) -> Pattern:
    """The pattern with this many workers, each on a port of its own, and a Redis that logs every command.

    Its append-only file keeps all commands, for `times_written`.
    """
    redis = pattern.process("redis")
    workers = [numbered_worker(pattern, number, **variables) for number in range(count)]
    pattern = pattern.with_changes("redis", argv=(*redis.argv, "--auto-aof-rewrite-percentage", "0"))
    return pattern.without("worker").with_processes(*workers)


def numbered_worker(pattern: Pattern, number: int, **variables: str) -> ProcessDefinition:
    """One of several workers of the pattern."""
    worker = pattern.process("worker")
    (port,) = worker.ports
    own = f"{port}_{number}"
    env = dict(worker.env) | {"PORT": f"{{{own}}}"} | variables
    return replace(worker, name=f"worker_{number}", ports={own: 1}, env=env, ready=f"http://{HOST}:{{{own}}}/health")


def kill(victim: ManagedProcess) -> RunningProcess:
    """SIGKILL to it and its children; the stack starts it again. What was killed."""
    running = victim.running
    if running is None:
        raise RuntimeError(f"{victim.label} is not running, and cannot be killed")
    running.signal_group(signal.SIGKILL)
    return running


async def started_again(victim: ManagedProcess, killed: RunningProcess) -> None:
    """Return when a killed process has been started again and is ready."""
    while victim.running in (None, killed) or not await victim.is_ready():
        await asyncio.sleep(STARTED_AGAIN_POLL_S)


async def kill_and_wait(victim: ManagedProcess) -> None:
    """SIGKILL; return when it has been started again and is ready."""
    await started_again(victim, kill(victim))


def children(pid: int) -> list[int]:
    """Child processes that lead sessions of their own (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which may contain anything: state, parent, process group, session.
            _, parent, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(parent) == pid and session == stat.parent.name:
                found.append(int(session))
    return found


@asynccontextmanager
async def hanging(victim: ManagedProcess) -> AsyncIterator[None]:
    """SIGSTOP: its ports accept connections, and nothing answers."""
    running = victim.running
    if running is None:
        raise RuntimeError(f"{victim.label} is not running, and cannot hang")
    running.signal_group(signal.SIGSTOP)
    try:
        yield
    finally:
        running.signal_group(signal.SIGCONT)


def times_written(folder: Path, key: str, ids: Sequence[str]) -> Counter[str]:
    """How often the key of each of these ids ({} in `key`) was set, according to Redis's append-only files."""
    written = b"".join(path.read_bytes() for path in sorted(folder.rglob("*.aof")))
    known, pattern = set(ids), re.escape(key).replace(r"\{\}", "([0-9a-f]+)")
    found = re.findall(rf"(?i)\r\nset\r\n\$\d+\r\n{pattern}\r\n".encode(), written)
    return Counter(job_id.decode() for job_id in found if job_id.decode() in known)


async def garbage(port: int, connections: int) -> None:
    """Connections that send random bytes; every other one closes without waiting for a response."""
    draw = random.Random(port)

    async def one(is_patient: bool) -> None:
        with contextlib.suppress(ConnectionError):
            reader, writer = await asyncio.open_connection(HOST, port)
            with contextlib.closing(writer):
                writer.write(draw.randbytes(draw.randrange(1, GARBAGE_BYTES)))
                await writer.drain()
                if is_patient:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(), HANG_UP_AFTER_S)

    for start in range(0, connections, 20):
        await asyncio.gather(*(one(number % 2 == 0) for number in range(start, min(start + 20, connections))))


class Relay:
    """A TCP relay in front of a service: passes everything on or, while it `lies`, answers garbage in its place."""

    def __init__(self, port: int, target_port: int, delay_s: float = 0) -> None:
        """`delay_s`: how much later each part of a response arrives."""
        self.lies, self._delay_s = False, delay_s
        self._port, self._target_port = port, target_port
        self._draw = random.Random(port)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self._port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if task := asyncio.current_task():
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            service_reader, service_writer = await asyncio.open_connection(HOST, self._target_port)
            with contextlib.closing(service_writer):
                responses = asyncio.create_task(self._copy_responses(service_reader, writer))
                try:
                    while data := await reader.read(GARBAGE_BYTES):
                        if self.lies:
                            writer.write(self._draw.randbytes(GARBAGE_BYTES))
                            return
                        service_writer.write(data)
                finally:
                    responses.cancel()

    async def _copy_responses(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError):
            while data := await reader.read(GARBAGE_BYTES):
                await asyncio.sleep(self._delay_s)
                writer.write(data)
