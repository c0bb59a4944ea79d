"""Whether the caller of a request still waits for the response: work for one that does not is not started."""

import asyncio
from collections.abc import Callable

from fastapi import Request
from starlette.types import Receive

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Milliseconds, from the request's arrival, after which its caller gives up. Durations need no common clock."""


def waits(request: Request) -> Callable[[], bool]:
    """A function that tells whether the caller is connected and its deadline, if it named one, is ahead."""
    timeout_ms = request.headers.get(TIMEOUT_HEADER, "")
    is_valid = timeout_ms.isascii() and timeout_ms.isdigit() and len(timeout_ms) < 10
    deadline = request.state.arrived + int(timeout_ms) / 1000 if is_valid else float("inf")
    now = asyncio.get_running_loop().time
    return lambda: now() < deadline and not _has_disconnected(request.receive)


def _has_disconnected(receive: Receive) -> bool:
    """Looks whether the server has noted a disconnect. A task that waits for it would cost every request more."""
    while True:
        receiving = receive()
        try:
            receiving.send(None)  # type: ignore[attr-defined]  # typed as an Awaitable; servers have coroutines
        except StopIteration as received:
            if received.value["type"] == "http.disconnect":
                return True
        else:
            receiving.close()  # type: ignore[attr-defined]  # there is nothing to receive yet
            return False
