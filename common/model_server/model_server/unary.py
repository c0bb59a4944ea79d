"""Unary gRPC calls, each answered in the thread that took it from the network.

grpc's own Python server wakes a second thread for every call, and that one the first again. For a model that needs
20 µs this is most of the work. grpc's C++ server, and so TensorFlow Serving's, does without: several threads take
events from one completion queue, and whoever takes a call also answers it. This is the same on grpc's core, for some
methods of a server; the rest of the server is grpc's own.

The core's Python interface, grpc._cython.cygrpc, is not public, but grpc's own server stands on it.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog
from grpc._cython import cygrpc  # type: ignore[attr-defined]  # 型の情報がない

from .pool import ElasticThreads
from .status import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc


log = structlog.get_logger()

NO_FLAGS = 0
# 次の呼び出しを受け付ける用意を、メソッドごとにいくつ重ねておくか。
CALLS_REQUESTED = 2


class Answer(NamedTuple):
    """How a call ends. `message` is sent only with Code.OK."""

    code: Code
    details: str = ""
    message: bytes = b""


class UnaryCalls:
    """Answers methods of `server`. Behaviors map a serialized request to an Answer and must not raise."""

    def __init__(
        self, server: grpc.Server, behaviors: Mapping[str, Callable[[bytes], Answer]], threads: int, max_threads: int
    ) -> None:
        self._core: Any = server._cy_server  # type: ignore[attr-defined]  # 公開されていない
        self._queue = cygrpc.CompletionQueue()
        self._core.register_completion_queue(self._queue)
        self._behaviors = behaviors
        for method in behaviors:
            self._core.register_method(method)
        self._thread_counts = threads, max_threads

    def start(self) -> None:
        """Take calls; the server has been started."""
        for method in self._behaviors:
            for _ in range(CALLS_REQUESTED):
                self._request_call(method)
        self._threads = ElasticThreads(self._next, *self._thread_counts)

    def stop(self) -> None:
        """End the threads; the server has stopped, and with it every call."""
        self._threads.stop_growing()
        self._queue.shutdown()

    def _next(self, timeout_s: float | None) -> Callable[[], None] | None:
        event = self._queue.poll(None if timeout_s is None else time.time() + timeout_s)
        # 時間切れや終了の知らせには、続きの処理を表すタグがない。
        return None if event.tag is None else partial(self._handle, event)

    def _handle(self, event: Any) -> None:
        try:
            event.tag(event)
        except Exception:
            # 1つの呼び出しの失敗で、スレッドを失ってはならない。
            log.exception("event_failed")

    def _request_call(self, method: str) -> None:
        self._core.request_registered_call(self._queue, self._queue, method, partial(self._on_call, method))

    def _on_call(self, method: str, event: Any) -> None:
        if not event.success:
            # サーバーが停止に入ったので、もう呼び出しは来ない。
            return
        try:
            self._request_call(method)
        except ValueError:
            log.info("last_call", method=method)
        receive = [cygrpc.ReceiveMessageOperation(NO_FLAGS)]
        event.call.start_server_batch(receive, partial(self._on_request, event.call, self._behaviors[method]))

    def _on_request(self, call: Any, behavior: Callable[[bytes], Answer], event: Any) -> None:
        request = event.batch_operations[0].message()
        if request is None:
            answer = Answer(Code.UNIMPLEMENTED, "The call requires exactly one request message")
        else:
            answer = behavior(request)
        operations = [
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(
                None, int(answer.code), answer.details.encode(errors="replace"), NO_FLAGS
            ),
            cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
        ]
        if answer.code is Code.OK:
            operations.append(cygrpc.SendMessageOperation(answer.message, NO_FLAGS))
        call.start_server_batch(operations, _on_end)


def _on_end(event: Any) -> None:
    """The client has its answer, or has gone."""
