"""PredictionService and ModelService over gRPC, with the standard health and reflection services."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tfserving_protos import messages, services

from .status import Code, StatusError
from .unary import CallResult, serve_unary

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from .inference import Inference, ModelService
    from .metrics import ServerMetrics
    from .pool import ElasticPool

log = structlog.get_logger()

INT32_MAX = 2**31 - 1


class GrpcServer:
    """The gRPC side of the server. Opens its ports in `start`."""

    def __init__(
        self,
        inference: Inference,
        models: ModelService,
        metrics: ServerMetrics,
        pool: ElasticPool,
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
        self._server = grpc.server(pool, options=options)
        functions: dict[str, dict[str, Callable[[Any], Message]]] = {
            services.PREDICTION_SERVICE: {
                "Predict": inference.predict,
                "Classify": inference.classify,
                "Regress": inference.regress,
                "MultiInference": inference.multi_inference,
                "GetModelMetadata": inference.metadata,
            },
            services.MODEL_SERVICE: {
                "GetModelStatus": models.status,
                "HandleReloadConfigRequest": models.reload_config,
            },
        }
        behaviors = {
            f"/{service}/{name}": _behavior(name, services.METHODS[service][name].request, function, metrics)
            for service, methods in functions.items()
            for name, function in methods.items()
        }
        self._calls = serve_unary(self._server, behaviors, threads=threads, max_threads=max_threads)
        # The standard services have streaming methods, too, so grpc's own server runs them.
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server, [*functions, health.SERVICE_NAME, reflection.SERVICE_NAME])
        self._service_names = ["", *functions]

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
        self._calls.start()
        for name in self._service_names:
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)

    def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, refuse new calls, and wait at most `grace_s` seconds for those in flight."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._calls.stop()


def _behavior(
    api: str, request_class: type[Message], function: Callable[[Any], Message], metrics: ServerMetrics
) -> Callable[[bytes], CallResult]:
    def behavior(serialized: bytes) -> CallResult:
        started = time.perf_counter()
        name, code, details, message = "", Code.OK, "", b""
        try:
            request: Any = request_class.FromString(serialized)
            message = function(request).SerializeToString()
            # Only successful requests carry a model name: unknown names would add time series without bound.
            name = request.model_spec.name if "model_spec" in request_class.DESCRIPTOR.fields_by_name else ""
        except StatusError as error:
            code, details = error.code, str(error)
        except DecodeError:
            code, details = Code.INTERNAL, "Exception deserializing request!"
        except Exception:
            code, details = Code.INTERNAL, "Internal error; see the server's log"
            log.exception("call_failed", api=api)
        metrics.record(name, api, "GRPC", code.name, time.perf_counter() - started)
        return CallResult(code, details, message)

    return behavior


def _add_reflection(server: grpc.Server, names: list[str]) -> None:
    # Our own pool describes two services only; reflection must describe the standard ones, too.
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        messages.POOL.AddSerializedFile(file.serialized_pb)
    reflection.enable_server_reflection(names, server, messages.POOL)


def _credentials(config: messages.SSLConfig) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
