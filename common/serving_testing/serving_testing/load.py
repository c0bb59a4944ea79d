"""An HTTP load generator cheap enough that, on two cores, it measures the server and not itself.

`python -m serving_testing.load` reads the arguments of `run` as a JSON object and prints a Load as one. It uses
asyncio's protocols because Python's HTTP clients take longer for a request than the fastest servers measured here.
"""

import asyncio
import gc
import json
import os
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from functools import partial
from subprocess import PIPE, CalledProcessError
from typing import Any, cast
from urllib.parse import urlsplit


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


class LoadConnection(asyncio.Protocol):
    """Sends the same request again and again, one at a time, each followed by `then` if there is one."""

    def __init__(self, request: bytes, then: bytes) -> None:
        self._request, self._then = request, then
        self._response: asyncio.Future[tuple[int, bytes]] | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of asyncio's class
        self.close = self._transport.close

    async def call(self) -> bool:
        """Whether every response was a 200."""
        status, body = await self._send(self._request)
        if status == 200 and self._then:
            status, _ = await self._send(self._then.replace(b"{}", json.loads(body)["job_id"].encode()))
        return status == 200

    def _send(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        """Status and body; status 0 if the connection broke, or the server has closed it since."""
        self._response = asyncio.get_running_loop().create_future()
        if self._transport.is_closing():
            self._response.set_result((0, b""))
        else:
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


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def run(
    url: str, connections: int, seconds: float, body: str | None = None, rate: float | None = None, then: str = ""
) -> Load:
    """POST a JSON body, or GET without one.

    Closed loop: each connection sends, waits for the whole response, and sends again. Open loop, with a rate: this many
    requests per second start when they are due, whether or not earlier ones have been answered; latencies count from
    when they were due. then: the path of a GET after each response, with the response's `job_id` in place of {}; both
    are timed as one.
    """
    parts = urlsplit(url)
    host, raw = f"Host: {parts.netloc}\r\n", (body or "").encode()
    headers = f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n" if raw else ""
    request = f"{'POST' if raw else 'GET'} {parts.path} HTTP/1.1\r\n{host}{headers}\r\n".encode() + raw
    factory = partial(LoadConnection, request, f"GET {then} HTTP/1.1\r\n{host}\r\n".encode() if then else b"")
    latencies: list[float] = []
    failed = 0

    async def connect() -> LoadConnection:
        return (await asyncio.get_running_loop().create_connection(factory, parts.hostname or "", parts.port or 80))[1]

    async def call(connection: LoadConnection, since: float) -> None:
        nonlocal failed
        if await connection.call():
            latencies.append(time.perf_counter() - since)
        else:
            failed += 1

    # Open loop: used in turn, so that the server closes none as idle.
    idle = deque([await connect() for _ in range(connections)])
    if rate:
        await asyncio.gather(*(connection.call() for connection in idle))  # warm up every path
    started = time.perf_counter()

    async def call_again_and_again(connection: LoadConnection) -> None:
        while (sent := time.perf_counter()) < started + seconds:
            await call(connection, sent)

    async def call_once(due: float) -> None:
        connection = idle.popleft() if idle else await connect()
        await call(connection, due)
        idle.append(connection)

    async with asyncio.TaskGroup() as tasks:
        for connection in idle if not rate else ():
            tasks.create_task(call_again_and_again(connection))
        for number in range(int((rate or 0) * seconds)):
            due = started + number / (rate or 1)
            await asyncio.sleep(max(0, due - time.perf_counter()))
            tasks.create_task(call_once(due))
    lasted = time.perf_counter() - started
    for connection in idle:
        connection.close()
    return Load(sorted(latencies), failed, lasted)


async def run_in_process(module: str, **arguments: Any) -> Load:
    """The Load that a load generator prints, in a process of its own. Raises CalledProcessError."""
    # Unbuffered, Python drops the rest of a line that a pipe takes only a part of.
    env = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module),
        env=env,
        stdin=PIPE,
        stdout=PIPE,
        process_group=0,  # a Ctrl-C at the terminal is for the caller; here it would print a traceback
    )
    try:
        output, _ = await process.communicate(json.dumps(arguments).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise CalledProcessError(process.returncode, module)
    return Load(**json.loads(output))


if __name__ == "__main__":
    import uvloop

    gc.disable()  # its pauses would count as the server's latency
    print(json.dumps(asdict(uvloop.run(run(**json.load(sys.stdin))))))
