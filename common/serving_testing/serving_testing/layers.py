"""What each layer of a service costs: the same request through apps of which each has one layer more.

The apps run in this process, below uvicorn's own protocol class with a transport in memory: all but the kernel's
sockets. They take turns in short batches, and the fastest batch of each counts, because what else runs on the machine
makes a batch slower and never faster.
"""

import asyncio
import gc
import time
from collections.abc import Mapping
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

BATCH = 20


class MemoryTransport(asyncio.Transport):
    """Calls `on_response` when a response, which uvicorn writes in two parts, has been written."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 80), "peername": ("127.0.0.1", 1024)})
        self.parts: list[bytes] = []
        self.responded = asyncio.Event()

    def write(self, data: Any) -> None:
        self.parts.append(data)
        if len(self.parts) == 2:
            self.responded.set()

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self) -> None: ...


class Connection:
    """A kept connection to an app, on which the same request is sent again and again."""

    def __init__(self, app: ASGIApp, body: bytes) -> None:
        config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
        config.server_header = False
        config.load()
        self._protocol = HttpToolsProtocol(config, ServerState(), {})
        self._transport = MemoryTransport()
        self._protocol.connection_made(self._transport)
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        self._request = f"{head}\r\n\r\n".encode() + body

    async def call(self) -> None:
        """Send the request, and return when the response has been written. Raises RuntimeError if it is not a 200."""
        self._transport.parts.clear()
        self._transport.responded.clear()
        self._protocol.data_received(self._request)
        await self._transport.responded.wait()
        if not self._transport.parts[0].startswith(b"HTTP/1.1 200"):
            raise RuntimeError(b"".join(self._transport.parts).decode())


async def measure(apps: Mapping[str, ASGIApp], body: bytes, rounds: int, connections: int = 1) -> dict[str, float]:
    """Microseconds per request of each app, the CPU time of all threads of this process."""
    clients = {name: [Connection(app, body) for _ in range(connections)] for name, app in apps.items()}
    best = dict.fromkeys(apps, float("inf"))

    async def repeat(client: Connection) -> None:
        for _ in range(BATCH):
            await client.call()

    gc.collect()
    gc.freeze()
    try:
        for _ in range(rounds):
            for name, each in clients.items():
                started = time.process_time()
                await asyncio.gather(*map(repeat, each))
                best[name] = min(best[name], 1e6 * (time.process_time() - started) / (BATCH * connections))
    finally:
        gc.unfreeze()
    return best
