"""An HTTP load generator that costs so little that, on two cores, it measures the server and not itself.

    python -m scripts.benchmarks.load URL CONNECTIONS SECONDS [--rate N] [--then PATH] [--body < BODY]

prints one JSON object. Closed loop: each connection sends the same request, waits for the whole response, and sends it
again. Open loop, with `--rate`: this many requests per second start when they are due, whether or not earlier ones have
been answered; latencies count from when they were due. `--then` sends a GET after each response, with the response's
`job_id` in place of {}, and times both as one. Written on asyncio's protocols because Python's HTTP clients take longer
for a request than the fastest servers measured here.
"""

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import cast
from urllib.parse import urlsplit

from scripts.devstack.table import ROOT


@dataclass(frozen=True)
class Load:
    """Results of one run; latencies in seconds, sorted."""

    latencies: list[float]
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Responses per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in seconds that this percentage of the responses did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))]


class _Connection(asyncio.Protocol):
    """One request at a time."""

    _response: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of asyncio's class
        self._buffer = b""

    def send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body; status 0 if the connection broke."""
        self._response = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._response

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if self._response is not None and separator and len(body) >= _content_length(head):
            self._buffer = b""
            self._response.set_result((int(head[9:12]), body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._response is not None and not self._response.done():
            self._response.set_result((0, b""))

    def close(self) -> None:
        self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


@dataclass(frozen=True)
class _Target:
    """Where requests go, and what they are."""

    host: str
    port: int
    request: bytes
    then: bytes

    async def connect(self) -> _Connection:
        return (await asyncio.get_running_loop().create_connection(_Connection, self.host, self.port))[1]

    async def call(self, connection: _Connection) -> bool:
        """Whether every response was a 200."""
        status, body = await connection.send(self.request)
        if status == 200 and self.then:
            job_id = json.loads(body)["job_id"]
            status, _ = await connection.send(self.then.replace(b"{}", job_id.encode()))
        return status == 200


def _target(url: str, body: bytes | None, then: str) -> _Target:
    parts = urlsplit(url)
    host = f"Host: {parts.netloc}\r\n"
    request = f"{'GET' if body is None else 'POST'} {parts.path} HTTP/1.1\r\n{host}"
    if body is not None:
        request += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    after = f"GET {then} HTTP/1.1\r\n{host}\r\n".encode() if then else b""
    return _Target(parts.hostname or "127.0.0.1", parts.port or 80, request.encode() + b"\r\n" + (body or b""), after)


async def run(
    url: str, connections: int, seconds: float, body: bytes | None = None, *, rate: float | None = None, then: str = ""
) -> Load:
    """POST a JSON body, or GET without one: in a closed loop, or with a rate in an open loop."""
    target = _target(url, body, then)
    if rate:
        return await _run_open(target, connections, seconds, rate)
    return await _run_closed(target, connections, seconds)


async def _run_closed(target: _Target, connections: int, seconds: float) -> Load:
    latencies: list[float] = []
    failed = 0
    opened = [await target.connect() for _ in range(connections)]
    started = time.perf_counter()

    async def work(connection: _Connection) -> None:
        nonlocal failed
        while (sent := time.perf_counter()) < started + seconds:
            if await target.call(connection):
                latencies.append(time.perf_counter() - sent)
            else:
                failed += 1
        connection.close()

    await asyncio.gather(*(work(connection) for connection in opened))
    return Load(sorted(latencies), failed, time.perf_counter() - started)


async def _run_open(target: _Target, connections: int, seconds: float, rate: float) -> Load:
    """`connections` are open at the start; more are opened when all are in use."""
    latencies: list[float] = []
    failed = 0
    # Used in turn, so that the server closes none as idle.
    idle = deque([await target.connect() for _ in range(connections)])
    await asyncio.gather(*(target.call(connection) for connection in idle))  # warm up every path
    started = time.perf_counter()

    async def one(due: float) -> None:
        nonlocal failed
        connection = idle.popleft() if idle else await target.connect()
        if await target.call(connection):
            latencies.append(time.perf_counter() - due)
        else:
            failed += 1
        idle.append(connection)

    async with asyncio.TaskGroup() as tasks:
        for number in range(int(rate * seconds)):
            due = started + number / rate
            await asyncio.sleep(max(0, due - time.perf_counter()))
            tasks.create_task(one(due))
    lasted = time.perf_counter() - started
    for connection in idle:
        connection.close()
    return Load(sorted(latencies), failed, lasted)


def measured(
    url: str, connections: int, seconds: float, body: str | None = None, *, rate: float | None = None, then: str = ""
) -> Load:
    """`run`, in a process of its own."""
    options = [
        *(["--body"] if body else []),
        *(["--rate", str(rate)] if rate else []),
        *(["--then", then] if then else []),
    ]
    # The body goes over stdin: an argument is limited to 128 kB, and photographs are larger.
    return load_of("scripts.benchmarks.load", url, str(connections), str(seconds), *options, text=body or "")


def load_of(module: str, *arguments: str, text: str = "") -> Load:
    """The result that a load generator prints in a process of its own. Raises CalledProcessError."""
    # Unbuffered, Python drops the rest of a line that a pipe takes only a part of.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, input=text, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("connections", type=int)
    parser.add_argument("seconds", type=float)
    parser.add_argument("--body", action="store_true")
    parser.add_argument("--rate", type=float)
    parser.add_argument("--then", default="")
    options = parser.parse_args()
    import uvloop

    body = sys.stdin.buffer.read() if options.body else None
    gc.disable()  # its pauses would count as the server's latency
    load = uvloop.run(
        run(options.url, options.connections, options.seconds, body, rate=options.rate, then=options.then)
    )
    print(json.dumps(asdict(load)))


if __name__ == "__main__":
    main()
