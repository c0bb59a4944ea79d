"""Unary gRPC calls, each answered by the thread that took it from the network.

grpc's own Python server wakes a second thread for every call, which then wakes the first one again. For a model that
needs 20 µs this is most of the work. grpc's C++ server, and so TensorFlow Serving, avoids it: several threads poll one
completion queue, and the thread that receives a call also answers it. CompletionQueueCalls does the same on grpc's
core. Methods that are not registered here stay with grpc's own server.

The core's Python interface, grpc._cython.cygrpc, is private, and this is the only module that uses it. PooledCalls does
the same with grpc's public API; `serve_unary` uses it when cygrpc is missing or fails a self-test.
"""

from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc
import structlog

from .fallback import try_private
from .pool import ElasticThreads
from .status import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

log = structlog.get_logger()

NO_FLAGS = 0
# Calls that the core may accept before a thread picks one up, for each method.
CALLS_REQUESTED = 2
SELF_TEST_TIMEOUT_S = 5.0


class CallResult(NamedTuple):
    """How a call ends. `message` is sent only with Code.OK."""

    code: Code
    details: str = ""
    message: bytes = b""


if TYPE_CHECKING:
    # Maps a serialized request to its result, and must not raise.
    Behavior = Callable[[bytes], CallResult]


class UnaryCalls(Protocol):
    """Answers some methods of a server, once that has been started."""

    def start(self) -> None:
        """Take calls; the server has been started."""

    def stop(self) -> None:
        """End the threads; the server has stopped, and with it every call."""


def serve_unary(
    server: grpc.Server, behaviors: Mapping[str, Behavior], *, threads: int, max_threads: int
) -> UnaryCalls:
    """Register `behaviors`, by full method name, with a server that has not been started."""
    if _is_cygrpc_usable():
        return CompletionQueueCalls(server, behaviors, threads, max_threads)
    return PooledCalls(server, behaviors)


class PooledCalls:
    """The fallback on public API: grpc's server runs the behaviors in its own thread pool."""

    def __init__(self, server: grpc.Server, behaviors: Mapping[str, Behavior]) -> None:
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for full_name, behavior in behaviors.items():
            service, method = full_name.strip("/").split("/")
            handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
                partial(self._answer, behavior)
            )
            services.setdefault(service, {})[method] = handler
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in services.items())
        )

    @staticmethod
    def _answer(behavior: Behavior, request: bytes, context: grpc.ServicerContext) -> bytes:
        result = behavior(request)
        if result.code is not Code.OK:
            # grpc refuses to encode lone surrogates, which a model's error message may hold.
            context.abort(grpc.StatusCode[result.code.name], result.details.encode(errors="replace").decode())
        return result.message

    def start(self) -> None:
        """Nothing to do: the server's own threads take the calls."""

    def stop(self) -> None:
        """Nothing to do: they have ended with the server."""


class CompletionQueueCalls:
    """The fast way, on grpc's core."""

    def __init__(self, server: grpc.Server, behaviors: Mapping[str, Behavior], threads: int, max_threads: int) -> None:
        from grpc._cython import cygrpc  # type: ignore[attr-defined]  # has no type information

        self._cygrpc: Any = cygrpc
        self._core: Any = server._cy_server  # type: ignore[attr-defined]  # private
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
        # Timeouts and the shutdown of the queue have no tag, which holds what to do next.
        return None if event.tag is None else partial(self._handle, event)

    def _handle(self, event: Any) -> None:
        try:
            event.tag(event)
        except Exception:
            # One failing call must not cost a thread.
            log.exception("event_failed")

    def _request_call(self, method: str) -> None:
        self._core.request_registered_call(self._queue, self._queue, method, partial(self._on_call, method))

    def _on_call(self, method: str, event: Any) -> None:
        if not event.success:
            # The server is shutting down: no more calls.
            return
        try:
            self._request_call(method)
        except ValueError:
            log.info("last_call", method=method)
        receive = [self._cygrpc.ReceiveMessageOperation(NO_FLAGS)]
        event.call.start_server_batch(receive, partial(self._on_request, event.call, self._behaviors[method]))

    def _on_request(self, call: Any, behavior: Behavior, event: Any) -> None:
        request = event.batch_operations[0].message()
        if request is None:
            result = CallResult(Code.UNIMPLEMENTED, "The call requires exactly one request message")
        else:
            result = behavior(request)
        cygrpc = self._cygrpc
        operations = [
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(
                None, int(result.code), result.details.encode(errors="replace"), NO_FLAGS
            ),
            cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS),
        ]
        if result.code is Code.OK:
            operations.append(cygrpc.SendMessageOperation(result.message, NO_FLAGS))
        call.start_server_batch(operations, _on_end)


def _on_end(event: Any) -> None:
    """The client has its response, or is gone."""


@functools.cache
def _is_cygrpc_usable() -> bool:
    return try_private("grpc._cython.cygrpc", _self_test) or False


def _self_test() -> bool:
    """A success and an error over the loopback interface; raises unless both arrive as they should."""
    results = {b"good": CallResult(Code.OK, message=b"message"), b"bad": CallResult(Code.NOT_FOUND, "details")}
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        calls = CompletionQueueCalls(server, {"/self.Test/Call": results.__getitem__}, 1, 1)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            calls.start()
            # Without the option, a proxy named by the environment would take the call.
            with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
                call: Callable[..., bytes] = channel.unary_unary("/self.Test/Call")
                if call(b"good", timeout=SELF_TEST_TIMEOUT_S) != b"message":
                    raise RuntimeError("a response is not the one that was sent")
                try:
                    call(b"bad", timeout=SELF_TEST_TIMEOUT_S)
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.NOT_FOUND or error.details() != "details":
                        raise
                else:
                    raise RuntimeError("an error arrives as a success")
        finally:
            server.stop(0).wait()
            calls.stop()
    return True
