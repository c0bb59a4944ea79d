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
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import grpc
import structlog

from serving_common import tracing

from .context import Context
from .fallback import try_private
from .pool import ElasticPool, ElasticThreads
from .status import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .context import Headers

log = structlog.get_logger()

NO_FLAGS = 0
# Calls that the core may accept before a thread picks one up, for each method.
CALLS_REQUESTED = 2
SELF_TEST_TIMEOUT_S = 5.0
# More than this is no deadline: grpc reports about 300 years.
LONGEST_S = 86_400 * 365


class CallResult(NamedTuple):
    """How a call ends. `message` is sent only with Code.OK."""

    code: Code
    details: str = ""
    message: bytes = b""


if TYPE_CHECKING:
    # Takes a serialized request, and passes its result to the function, now or later. Must not raise.
    Behavior = Callable[[bytes, Context, Callable[[CallResult], None]], None]


class UnaryCalls(Protocol):
    """Answers some methods of a server, once that has been started."""

    def start(self) -> None:
        """Take calls; the server has been started."""

    def stop(self) -> None:
        """End the threads; the server has stopped, and with it every call."""


def serve_unary(
    server: grpc.Server, behaviors: Mapping[str, Behavior], *, threads: int, max_threads: int
) -> UnaryCalls:
    """Register `behaviors`, by full method name, with a server that has not been started, on threads of their own."""
    if _is_cygrpc_usable():
        return CompletionQueueCalls(server, behaviors, threads, max_threads)
    return PooledCalls(server, behaviors, threads, max_threads)


class PooledCalls:
    """The fallback on public API: grpc's server runs the behaviors in a thread pool."""

    def __init__(self, server: grpc.Server, behaviors: Mapping[str, Behavior], threads: int, max_threads: int) -> None:
        self._pool = ElasticPool(threads, max_threads)
        services: dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        for full_name, behavior in behaviors.items():
            service, method = full_name.strip("/").split("/")
            function: Any = partial(self._answer, behavior)
            # A grpc without this attribute uses the pool of the server.
            function.experimental_thread_pool = self._pool
            handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(function)
            services.setdefault(service, {})[method] = handler
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in services.items())
        )

    def _answer(self, behavior: Behavior, request: bytes, servicer: grpc.ServicerContext) -> bytes:
        left_s: float | None = servicer.time_remaining()
        ends = None if left_s is None or left_s > LONGEST_S else time.monotonic() + left_s
        context = Context(ends, servicer.invocation_metadata())
        if not servicer.add_callback(context.cancel):
            context.cancel()
        future: Future[CallResult] = Future()
        behavior(request, context, future.set_result)
        if not future.done():
            with self._pool.waiting():
                future.exception()
        result = future.result()
        if result.code is not Code.OK:
            # grpc refuses to encode lone surrogates, which a model's error message may hold.
            servicer.abort(grpc.StatusCode[result.code.name], result.details.encode(errors="replace").decode())
        return result.message

    def start(self) -> None:
        """Nothing to do: the server takes the calls."""

    def stop(self) -> None:
        """End the threads; the server has stopped, and with it every call."""
        self._pool.shutdown()


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
        self._is_stopped = False
        self._closing = threading.Lock()

    def start(self) -> None:
        """Take calls; the server has been started."""
        for method in self._behaviors:
            for _ in range(CALLS_REQUESTED):
                self._request_call(method)
        self._threads = ElasticThreads(self._next, *self._thread_counts)

    def stop(self) -> None:
        """End the threads; the server has stopped, and with it every call."""
        with self._closing:
            self._is_stopped = True
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
        left_s = event.call_details.deadline - time.time()
        ends = None if left_s > LONGEST_S else time.monotonic() + left_s
        context = _CallContext(self, event.call, ends, event.invocation_metadata)
        event.call.start_server_batch(receive, partial(self._on_request, context, self._behaviors[method]))

    def _on_request(self, context: _CallContext, behavior: Behavior, event: Any) -> None:
        request = event.batch_operations[0].message()
        if request is None:
            self.send(context, CallResult(Code.UNIMPLEMENTED, "The call requires exactly one request message"))
        else:
            behavior(request, context, partial(self.send, context))

    def receive_close(self, context: _CallContext) -> None:
        """Cancel `context` when the client goes. Any thread may ask for it, also while the call ends."""
        with self._closing:
            if self._is_stopped or not context.claim_close():
                return
            operations = [self._cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS)]
            try:
                context.call.start_server_batch(operations, partial(_on_close, context))
            except ValueError as error:
                log.info("call_not_watched", reason=str(error), **tracing.log_ids(context.headers))

    def send(self, context: _CallContext, result: CallResult) -> None:
        """End the call with `result`."""
        if self._is_stopped:
            # The call has ended with the server, and grpc's core aborts the process for work on its closed queue.
            return
        cygrpc = self._cygrpc
        operations = [
            cygrpc.SendInitialMetadataOperation(None, NO_FLAGS),
            cygrpc.SendStatusFromServerOperation(
                None, int(result.code), result.details.encode(errors="replace"), NO_FLAGS
            ),
        ]
        if context.claim_close():
            # The core requires it, once.
            operations.append(cygrpc.ReceiveCloseOnServerOperation(NO_FLAGS))
        if result.code is Code.OK:
            operations.append(cygrpc.SendMessageOperation(result.message, NO_FLAGS))
        try:
            context.call.start_server_batch(operations, _on_end)
        except ValueError as error:
            log.info("response_not_sent", reason=str(error), **tracing.log_ids(context.headers))


class _CallContext(Context):
    """The context of one call on the core. The core itself drops calls that end before a thread takes them."""

    __slots__ = ("_calls", "_unclaimed", "call")

    def __init__(self, calls: CompletionQueueCalls, call: Any, ends: float | None, headers: Headers) -> None:
        super().__init__(ends, headers)
        self._calls = calls
        self.call = call
        self._unclaimed = [True]

    def claim_close(self) -> bool:
        """Whether the caller is the first, and so the one to ask the core for the end of the call."""
        try:
            return self._unclaimed.pop()
        except IndexError:
            return False

    def watch(self) -> None:
        """Only for calls that take long, because it costs one more event."""
        self._calls.receive_close(self)


def _on_close(context: Context, event: Any) -> None:
    if event.batch_operations[0].cancelled():
        context.cancel()


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

        def behavior(request: bytes, context: Context, respond: Callable[[CallResult], None]) -> None:
            if context.left_s() is None:
                raise RuntimeError("a deadline is not passed on")
            context.watch()
            respond(results[request])

        calls = CompletionQueueCalls(server, {"/self.Test/Call": behavior}, 1, 1)
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
