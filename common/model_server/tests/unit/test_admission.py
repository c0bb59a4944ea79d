"""Calls of one model wait for each other without a thread, and calls that have ended meanwhile are not started."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from model_server import unary
from model_server.admission import Admission
from model_server.context import NO_LIMIT, Context
from model_server.status import Code, StatusError
from serving_testing.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

METHOD = "/test.Service/Method"


def test_work_above_the_limit_waits_without_a_thread_and_others_run() -> None:
    admission, release, order = Admission(1), threading.Event(), list[str]()

    def held() -> None:
        release.wait(60)
        order.append("held")

    thread = threading.Thread(target=admission.submit, args=("slow", NO_LIMIT, held))
    thread.start()
    wait_until(lambda: admission._running == {"slow": 1})
    # Both return at once; with a thread for each, the first would not.
    admission.submit("slow", NO_LIMIT, lambda: order.append("waited"))
    admission.submit("other", NO_LIMIT, lambda: order.append("other"))
    assert order == ["other"]
    release.set()
    thread.join()
    assert order == ["other", "held", "waited"]
    assert admission._running == admission._waiting == {}


@pytest.mark.parametrize("calls", [unary.CompletionQueueCalls, unary.PooledCalls])
@pytest.mark.parametrize(
    ("end", "code"),
    [
        pytest.param("cancel", Code.CANCELLED, id="cancelled"),
        pytest.param("deadline", Code.DEADLINE_EXCEEDED, id="expired"),
    ],
)
def test_waiting_call_that_ends_is_not_started(calls: Any, end: str, code: Code) -> None:
    admission, release, entered = Admission(1), threading.Event(), threading.Event()
    waiting = threading.Semaphore(0)
    started: list[bytes] = []
    ended: list[tuple[bytes, Code]] = []
    contexts: dict[bytes, Context] = {}

    def work(request: bytes, context: Context, respond: Callable[[unary.CallResult], None]) -> None:
        try:
            context.check()
        except StatusError as error:
            ended.append((request, error.code))
            respond(unary.CallResult(error.code))
            return
        started.append(request)
        entered.set()
        release.wait(60)
        respond(unary.CallResult(Code.OK, message=request))

    def behavior(request: bytes, context: Context, respond: Callable[[unary.CallResult], None]) -> None:
        contexts[request] = context
        waiting.release()
        admission.submit("m", context, partial(work, request, context, respond))

    server = grpc.server(ThreadPoolExecutor(1))
    served = calls(server, {METHOD: behavior}, 2, 4)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    served.start()
    with grpc.insecure_channel(address) as channel:
        method: Any = channel.unary_unary(METHOD)
        first = method.future(b"first", timeout=60)
        assert entered.wait(60)
        second = method.future(b"second", timeout=60 if end == "cancel" else 2)
        third = method.future(b"third", timeout=60)
        wait_until(lambda: len(admission._waiting.get("m", ())) == 2)
        if end == "cancel":
            second.cancel()
            wait_until(lambda: contexts[b"second"].is_cancelled)
        else:
            assert second.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            # The server counts from when the call has arrived.
            wait_until(lambda: contexts[b"second"].left_s() == 0)
        release.set()
        assert (first.result(), third.result()) == (b"first", b"third")
    assert started == [b"first", b"third"]
    [(request, found)] = ended
    # The core reports an expired call as cancelled, too: whichever comes first.
    assert request == b"second"
    assert found in (code, Code.CANCELLED)
    server.stop(None).wait()
    served.stop()
