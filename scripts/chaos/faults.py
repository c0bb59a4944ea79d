"""Faults beside those of the devstack: ports that receive garbage, services that answer with garbage."""

import asyncio
import contextlib
import random
from dataclasses import replace
from typing import Self

from scripts.devstack.table import HOST, Pattern, ProcessDefinition

GARBAGE_BYTES = 4096
HANG_UP_AFTER_S = 0.2


def with_workers(pattern: Pattern, count: int, **variables: str) -> Pattern:
    """The pattern with this many workers, each on a port of its own, and a Redis that logs every command.

    Its append-only file keeps all commands, for `devstack.load.times_written`.
    """
    redis = pattern.process("redis")
    workers = [numbered_worker(pattern, number, **variables) for number in range(count)]
    pattern = pattern.with_changes("redis", argv=(*redis.argv, "--auto-aof-rewrite-percentage", "0"))
    return pattern.without("worker").with_processes(*workers)


def numbered_worker(pattern: Pattern, number: int, **variables: str) -> ProcessDefinition:
    """One of several workers of the pattern."""
    worker = replica_of(pattern.process("worker"), number)
    return replace(worker, env={**worker.env, **variables})


def replica_of(definition: ProcessDefinition, number: int) -> ProcessDefinition:
    """The same process once more, on ports of its own."""

    def renamed(text: str) -> str:
        for port in definition.ports:
            text = text.replace(f"{{{port}}}", f"{{{port}_{number}}}")
        return text

    return replace(
        definition,
        name=f"{definition.name}_{number}",
        argv=tuple(map(renamed, definition.argv)),
        ports={f"{port}_{number}": 1 for port in definition.ports},
        env={name: renamed(value) for name, value in definition.env.items()},
        ready=renamed(definition.ready) if isinstance(definition.ready, str) else definition.ready,
    )


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
        """`delay_s`: how much later each part of a response arrives. A new `target_port` is for new connections."""
        self.lies, self.delay_s = False, delay_s
        self.port, self.target_port = port, target_port
        self._draw = random.Random(port)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
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
            service_reader, service_writer = await asyncio.open_connection(HOST, self.target_port)
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
                await asyncio.sleep(self.delay_s)
                writer.write(data)
