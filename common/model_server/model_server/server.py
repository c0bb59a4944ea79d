"""Starts the parts: models, threads, gRPC, REST, polling; and stops them on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import socket
import threading
from typing import TYPE_CHECKING

import structlog
import uvicorn

from serving_common import tracing

from .admission import Admission
from .batching import Batcher
from .core import Core
from .flags import read_models, read_seconds
from .grpc_server import GrpcServer
from .inference import Inference, ModelService
from .manager import ModelManager, Poller
from .metrics import ServerMetrics
from .model import Servable
from .open_inference import OpenInference
from .open_inference_rest import OpenInferenceRest
from .pool import ElasticPool
from .rest import DEFAULT_METRICS_PATH, RestApi
from .runtime import SessionOptions
from .status import StatusError
from .warmup import warm_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from .flags import Configuration, Flags

log = structlog.get_logger()

# Seconds from the signal until requests in flight are cut off. Less than the container's stop_grace_period.
GRACE_S = 20
# Measured to be fastest for short requests: more threads compete for the interpreter lock. REST has the event loop in a
# thread of its own, and enough threads to start the next request meanwhile. With slow requests the pools grow.
GRPC_THREADS = 1
REST_THREADS = 3


async def serve(flags: Flags, configuration: Configuration) -> None:
    """Load the models, open the ports, and serve until SIGTERM or SIGINT.

    Raises:
        StatusError: a model cannot be served, or the configuration, DRAIN_DELAY_S or KEEP_ALIVE_S is wrong.
        RuntimeError, OSError: a port cannot be opened.
    """
    # For a drain: how long the ports stay open after the signal.
    drain_delay_s = read_seconds("DRAIN_DELAY_S", 0)
    # More than the 60 s after which load balancers usually close an idle connection: the server must not be the first.
    keep_alive_s = read_seconds("KEEP_ALIVE_S", 75)
    tracing.configure("model_server")
    stop, stopped, stopped_again = threading.Event(), asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        if stopped.is_set():
            stopped_again.set()
        stop.set()
        stopped.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)

    manager = ModelManager(
        _loader(flags), labels_need_loaded_versions=not flags.allow_version_labels_for_unavailable_models
    )
    poll_s = flags.file_system_poll_wait_seconds
    await asyncio.to_thread(manager.start, configuration.models, poll_s, stop)
    if stop.is_set():
        return

    batching = configuration.batching
    batcher = Batcher(batching) if batching else None
    # A request that waits for its batch occupies a thread: enough of them to fill one batch and begin the next.
    batch_threads = 2 * batching.max_batch_size if batching else 0
    max_threads = flags.grpc_max_threads
    # Of one model at a time, as many as TensorFlow Serving runs of all; less than there are threads.
    admission = Admission(max(1, min(max(4 * (os.cpu_count() or 1), batch_threads), max_threads - 1)))
    pool = ElasticPool(min(max(REST_THREADS, batch_threads), max_threads), max_threads)
    core = Core(manager, batcher.run) if batcher else Core(manager)
    models = ModelService(manager, is_controlled=flags.model_control_mode == "explicit")
    inference, open_inference, metrics = Inference(core), OpenInference(core, models), ServerMetrics()
    prometheus = configuration.monitoring.prometheus_config
    rest = RestApi(
        core,
        inference,
        OpenInferenceRest(open_inference),
        models,
        metrics,
        pool,
        admission,
        timeout_s=flags.rest_api_timeout_in_ms / 1000,
        cors=flags.rest_api_enable_cors_support,
        metrics_path=(prometheus.path or DEFAULT_METRICS_PATH) if prometheus.enable else None,
    )
    grpc_server = GrpcServer(
        inference,
        open_inference,
        models,
        metrics,
        admission,
        threads=min(max(GRPC_THREADS, batch_threads), max_threads),
        max_threads=max_threads,
        channel_arguments=flags.grpc_channel_arguments,
    )
    # Exempt the many objects created so far from garbage collection.
    gc.collect()
    gc.freeze()

    # Opened here, because uvicorn exits without a reason if the port is in use.
    listeners = [_listen(flags.rest_api_port)] if flags.rest_api_port else []
    grpc_server.start(_grpc_addresses(flags), configuration.tls)
    http = _HttpServer(rest, keep_alive_s)
    http_serving = asyncio.create_task(http.serve(listeners) if listeners else stopped.wait())
    jobs = [(poll_s, manager.poll)]
    if flags.model_config_file:
        jobs.append((flags.model_config_file_poll_wait_seconds, _reloader(flags.model_config_file, manager)))
    Poller(stop, jobs).start()
    log.info("serving", grpc=_grpc_addresses(flags), rest_api_port=flags.rest_api_port)
    await stopped.wait()

    log.info("stopping", drain_delay_s=drain_delay_s)
    models.report_stopping()
    rest.close_connections()
    grpc_server.report_not_serving()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stopped_again.wait(), drain_delay_s)  # a second signal ends the delay
    http.should_exit = True
    await asyncio.gather(asyncio.to_thread(grpc_server.stop, GRACE_S), http_serving)
    if batcher:
        await asyncio.to_thread(batcher.close)
    pool.shutdown()
    manager.close()
    await asyncio.to_thread(tracing.shutdown)
    log.info("stopped")


class _HttpServer(uvicorn.Server):
    """uvicorn on the running loop, without signal handlers: `serve` has them."""

    def __init__(self, app: RestApi, keep_alive_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=math.ceil(keep_alive_s),
                timeout_graceful_shutdown=GRACE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers."""
        yield


def _listen(port: int) -> socket.socket:
    # IPv6, if there is any, and IPv4, as on the gRPC port: some clients resolve localhost to ::1 only.
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    # Without an explicit protocol, asyncio does not set TCP_NODELAY, and every response waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("", port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on port {port}: {error.strerror}") from None
    listener.listen(2048)
    return listener


def _loader(flags: Flags) -> Callable[[str, int, Path], Servable]:
    options = SessionOptions(
        runtime=flags.runtime,
        tags=tuple(flags.saved_model_tags.split(",")),
        intra_op_threads=flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism,
        inter_op_threads=flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism,
    )

    def load(name: str, version: int, folder: Path) -> Servable:
        servable = Servable.load(name, version, folder, options)
        if flags.enable_model_warmup:
            warm_up(servable, folder, flags.num_request_iterations_for_warmup)
        return servable

    return load


def _reloader(path: Path, manager: ModelManager) -> Callable[[], None]:
    """A job that applies the configuration file whenever its content has changed."""
    applied = path.read_bytes()

    def reload() -> None:
        nonlocal applied
        content = path.read_bytes()
        if content == applied:
            return
        applied = content
        try:
            manager.reload(read_models(path))
        except StatusError as error:
            log.error("config_refused", path=str(path), error=error.describe())

    return reload


def _grpc_addresses(flags: Flags) -> list[str]:
    addresses = [f"0.0.0.0:{flags.port}"] if flags.port else []
    if flags.grpc_socket_path:
        addresses.append(f"unix:{flags.grpc_socket_path}")
    return addresses
