"""Both protocols over gRPC on one port, with the standard health and reflection services."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving_common import tracing
from tfserving_protos import messages, services

from .pool import ElasticPool
from .status import Code, StatusError
from .unary import CallResult, serve_unary

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from .admission import Admission
    from .context import Context
    from .inference import Inference, ModelService
    from .metrics import ServerMetrics
    from .open_inference import OpenInference
    from .unary import Behavior

log = structlog.get_logger()

INT32_MAX = 2**31 - 1
# Threads for status, metadata, health: they never wait for a model. Loading models has one of its own.
CONTROL_THREADS = 4


class GrpcServer:
    """The gRPC side of the server. Opens its ports in `start`."""

    def __init__(
        self,
        inference: Inference,
        open_inference: OpenInference,
        models: ModelService,
        metrics: ServerMetrics,
        admission: Admission,
        *,
        threads: int,
        max_threads: int,
        channel_arguments: tuple[tuple[str, int | str], ...] = (),
    ) -> None:
        options = [
            # Fail at start instead of silently sharing a port that is in use.
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", INT32_MAX),
            ("grpc.max_send_message_length", INT32_MAX),
            *channel_arguments,
        ]
        self._control_pool = ElasticPool(1, CONTROL_THREADS)
        self._server = grpc.server(self._control_pool, options=options)
        prediction, model, open_ = services.PREDICTION_SERVICE, services.MODEL_SERVICE, services.INFERENCE_SERVICE
        runs: dict[tuple[str, str], Callable[[Any, Context], Message]] = {
            (prediction, "Predict"): inference.predict,
            (prediction, "Classify"): inference.classify,
            (prediction, "Regress"): inference.regress,
            (prediction, "MultiInference"): inference.multi_inference,
            (open_, "ModelInfer"): open_inference.infer,
        }
        controls: dict[tuple[str, str], Callable[[Any], Message]] = {
            (prediction, "GetModelMetadata"): inference.metadata,
            (model, "GetModelStatus"): models.status,
            (open_, "ServerLive"): open_inference.server_live,
            (open_, "ServerReady"): open_inference.server_ready,
            (open_, "ServerMetadata"): open_inference.server_metadata,
            (open_, "ModelReady"): open_inference.model_ready,
            (open_, "ModelMetadata"): open_inference.model_metadata,
            (open_, "RepositoryIndex"): open_inference.repository_index,
        }
        loads: dict[tuple[str, str], Callable[[Any], Message]] = {
            (model, "HandleReloadConfigRequest"): models.reload_config,
            (open_, "RepositoryModelLoad"): open_inference.repository_load,
            (open_, "RepositoryModelUnload"): open_inference.repository_unload,
        }

        def record(name: str, api: str, code: Code, duration_s: float) -> None:
            metrics.record(models.known(name), api, "GRPC", code, duration_s)

        run_behaviors = {
            _path(method): _run_behavior(method, function, admission, record) for method, function in runs.items()
        }
        control_behaviors, load_behaviors = (
            {_path(method): _control_behavior(method, function) for method, function in functions.items()}
            for functions in (controls, loads)
        )
        self._calls = [
            serve_unary(self._server, run_behaviors, threads=threads, max_threads=max_threads),
            serve_unary(self._server, control_behaviors, threads=1, max_threads=CONTROL_THREADS),
            serve_unary(self._server, load_behaviors, threads=1, max_threads=1),
        ]
        # The standard services have streaming methods, too, so grpc's own server runs them.
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server, [*services.METHODS, health.SERVICE_NAME, reflection.SERVICE_NAME])
        self._service_names = ["", *services.METHODS]

    def start(self, addresses: list[str], tls: messages.SSLConfig | None) -> None:
        """Listen on every address, `host:port` or `unix:path`.

        Raises:
            RuntimeError: an address is taken.
        """
        for address in addresses:
            if tls is None or address.startswith("unix:"):
                self._server.add_insecure_port(address)
            else:
                self._server.add_secure_port(address, _credentials(tls))
        self._server.start()
        for calls in self._calls:
            calls.start()
        for name in self._service_names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def report_not_serving(self) -> None:
        """The health service says NOT_SERVING from now on, while calls are still accepted."""
        self._health.enter_graceful_shutdown()

    def stop(self, grace_s: float) -> None:
        """Refuse new calls, and wait at most `grace_s` seconds for those in flight."""
        self._server.stop(grace_s).wait()
        for calls in self._calls:
            calls.stop()
        self._control_pool.shutdown()


def _path(method: tuple[str, str]) -> str:
    return "/".join(("", *method))


def _parsed(method: tuple[str, str], serialized: bytes, respond: Callable[[CallResult], None]) -> Any:
    """The request; None, and a response, if it is malformed."""
    service, name = method
    try:
        return services.METHODS[service][name].request.FromString(serialized)
    except DecodeError:
        # INTERNAL is what TensorFlow Serving, as gRPC itself, says.
        code = Code.INVALID_ARGUMENT if service == services.INFERENCE_SERVICE else Code.INTERNAL
        respond(CallResult(code, "Exception deserializing request!"))
        return None


def _result(api: str, function: Callable[[], Message], context: Context) -> CallResult:
    """How a call of `function` ends; never raises."""
    try:
        return CallResult(Code.OK, message=function().SerializeToString())
    except StatusError as error:
        return CallResult(error.code, str(error))
    except Exception:
        log.exception("call_failed", api=api, **tracing.log_ids(context.headers))
        return CallResult(Code.INTERNAL, "Internal error; see the server's log")


def _control_behavior(method: tuple[str, str], function: Callable[[Any], Message]) -> Behavior:
    def behavior(serialized: bytes, context: Context, respond: Callable[[CallResult], None]) -> None:
        request = _parsed(method, serialized, respond)
        if request is not None:
            respond(_result(method[1], lambda: function(request), context))

    return behavior


def _run_behavior(
    method: tuple[str, str],
    function: Callable[[Any, Context], Message],
    admission: Admission,
    record: Callable[[str, str, Code, float], None],
) -> Behavior:
    api = method[1]
    rpc = "/".join(method)
    attributes = {"rpc.system.name": "grpc", "rpc.method": rpc}

    def behavior(serialized: bytes, context: Context, respond: Callable[[CallResult], None]) -> None:
        started = time.perf_counter()
        request = _parsed(method, serialized, respond)
        if request is None:
            return
        span = tracing.begin(context.headers, rpc, tracing.SERVER, attributes)
        name = _model_name(request)

        def work() -> None:
            with span:
                result = _result(api, lambda: function(request, context), context)
                span.set({"rpc.response.status_code": result.code.name})
                if result.code is not Code.OK:
                    span.fail(result.details, result.code.name)
            record(name, api, result.code, time.perf_counter() - started)
            respond(result)

        admission.submit(name, context, work)

    return behavior


def _model_name(request: Any) -> str:
    """The model that a request is for. All tasks of one request are for the same."""
    if isinstance(request, messages.ModelInferRequest):
        return request.model_name
    spec: messages.ModelSpec = (
        request.tasks[0].model_spec
        if isinstance(request, messages.MultiInferenceRequest) and request.tasks
        else getattr(request, "model_spec", messages.ModelSpec())
    )
    return spec.name


def _add_reflection(server: grpc.Server, names: list[str]) -> None:
    # Our own pool describes the two protocols only; reflection must describe the standard ones, too.
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        messages.POOL.AddSerializedFile(file.serialized_pb)
    reflection.enable_server_reflection(names, server, messages.POOL)


def _credentials(config: messages.SSLConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
