"""A closed-loop HTTP load generator that costs so little that, on two cores, it measures the server and not itself.

    python -m scripts.bench.load URL CONNECTIONS SECONDS [BODY | @FILE]     prints one JSON object

Each connection sends the same request, waits for the whole answer, and sends it again. Written on asyncio's protocols
because the HTTP clients that there are for Python take longer for a request than the fastest servers measured here.
"""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Load:
    """What one run saw; latencies in seconds, sorted."""

    latencies: list[float]
    failed: int
    seconds: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds

    def percentile(self, percent: float) -> float:
        """Latency in seconds that so many percent of the answers did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(len(self.latencies) * percent / 100))]


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, until: float, latencies: list[float], failures: list[int]) -> None:
        self._request = request
        self._until = until
        self._latencies = latencies
        self._failures = failures
        self._buffer = b""
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no instances of asyncio's class
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        if head.startswith(b"HTTP/1.1 200"):
            self._latencies.append(time.perf_counter() - self._sent)
        else:
            self._failures.append(int(head[9:12]))
        self._buffer = b""
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.finished.done():
            self._failures.append(0)
            self.finished.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        if self._sent < self._until:
            self._transport.write(self._request)
        else:
            self.finished.set_result(None)
            self._transport.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def run(url: str, connections: int, seconds: float, body: bytes | None = None) -> Load:
    """Load `url` with so many connections for so long: POST with a JSON body, GET without."""
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or 80
    head = f"{'GET' if body is None else 'POST'} {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"\r\n" + (body or b"")
    latencies: list[float] = []
    failures: list[int] = []
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    made = [
        await loop.create_connection(lambda: _Connection(request, started + seconds, latencies, failures), host, port)
        for _ in range(connections)
    ]
    await asyncio.gather(*(protocol.finished for _, protocol in made))
    return Load(sorted(latencies), len(failures), time.perf_counter() - started)


def measured(url: str, connections: int, seconds: float, body: str | None = None) -> Load:
    """The same, from a process of its own."""
    command = [sys.executable, "-m", "scripts.bench.load", url, str(connections), str(seconds)]
    done = subprocess.run([*command, *([body] if body else [])], cwd=ROOT, capture_output=True, text=True, check=True)
    return Load(**json.loads(done.stdout))


def main() -> None:
    url, connections, seconds, *rest = sys.argv[1:]
    import uvloop

    body = None
    if rest:  # one argument of a command cannot have more than 128 kB
        body = Path(rest[0][1:]).read_bytes() if rest[0].startswith("@") else rest[0].encode()
    load = uvloop.run(run(url, int(connections), float(seconds), body))
    print(json.dumps({"latencies": load.latencies, "failed": load.failed, "seconds": load.seconds}))


if __name__ == "__main__":
    main()
