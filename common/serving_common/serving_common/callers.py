"""Work for a caller that no longer waits for the response is not started, or is cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.types import Receive

from serving_common.errors import CallerGone

T = TypeVar("T")

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
"""Milliseconds, from the request's arrival, after which its caller gives up. Durations need no common clock."""


def waits(request: Request) -> Callable[[], bool]:
    """A function that tells whether the caller is connected and its deadline, if it named one, is ahead."""
    timeout_ms = request.headers.get(TIMEOUT_HEADER, "")
    is_valid = timeout_ms.isascii() and timeout_ms.isdigit() and len(timeout_ms) < 10
    deadline = request.state.arrived + int(timeout_ms) / 1000 if is_valid else float("inf")
    now = asyncio.get_running_loop().time
    return lambda: now() < deadline and not _has_disconnected(request.receive)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the caller disconnects. The request's body has been read before.

    Raises CallerGone.
    """
    working = asyncio.create_task(work)
    watching = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise CallerGone("The caller has disconnected")
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


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
