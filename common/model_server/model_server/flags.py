"""The command line: every flag of TensorFlow Serving. Some have no effect here; others than those are rejected."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog
from google.protobuf import text_format

from tfserving_protos import messages

from .batching import BatchingOptions
from .manager import validated
from .runtime import Runtime
from .status import invalid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from google.protobuf.message import Message

    M = TypeVar("M", bound=Message)


log = structlog.get_logger()

# Flags for what this server does not have, does always, or does in another way. docs/model-server.md says which.
WITHOUT_EFFECT = (
    "enable_grpc_healthcheck_service",
    "enable_per_model_batching_parameters",
    "enable_profiler",
    "enable_serialization_as_tensor_content",
    "enable_signature_method_name_check",
    "flush_filesystem_caches",
    "load_retry_interval_micros",
    "max_num_load_retries",
    "mixed_precision",
    "num_load_threads",
    "num_tflite_interpreters_per_pool",
    "num_tflite_pools",
    "num_unload_threads",
    "per_process_gpu_memory_fraction",
    "platform_config_file",
    "prefer_tflite_model",
    "remove_unused_fields_from_bundle_metagraph",
    "rest_api_num_threads",
    "skip_initialize_tpu",
    "tensorflow_session_config_file",
    "thread_pool_factory_config_file",
    "use_alts_credentials",
    "use_tflite_model",
    "xla_cpu_compilation_enabled",
    "xla_gpu_compilation_enabled",
)
# Fields of BatchingParameters, likewise.
BATCHING_WITHOUT_EFFECT = frozenset(
    [
        "enable_large_batch_splitting",
        "max_execution_batch_size",
        "thread_pool_name",
        "pad_variable_length_inputs",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """One field for each flag, by its name."""

    port: int
    grpc_socket_path: str
    grpc_max_threads: int
    grpc_channel_arguments: tuple[tuple[str, int | str], ...]
    ssl_config_file: Path | None
    rest_api_port: int
    rest_api_timeout_in_ms: int
    rest_api_enable_cors_support: bool
    model_name: str
    model_base_path: str
    model_config_file: Path | None
    model_config_file_poll_wait_seconds: float
    model_control_mode: str
    file_system_poll_wait_seconds: float
    allow_version_labels_for_unavailable_models: bool
    enable_model_warmup: bool
    monitoring_config_file: Path | None
    enable_batching: bool
    batching_parameters_file: Path | None
    num_request_iterations_for_warmup: int
    runtime: Runtime
    saved_model_tags: str
    tensorflow_session_parallelism: int
    tensorflow_intra_op_parallelism: int
    tensorflow_inter_op_parallelism: int
    without_effect: Mapping[str, str]


def parse(arguments: Sequence[str] | None = None) -> Flags:
    """Read the command line. Exits with a message if it is wrong, and for --help and --version."""
    parser = argparse.ArgumentParser(
        prog="tensorflow_model_server",
        description="Serves ONNX models and TensorFlow SavedModels with TensorFlow Serving's protocol.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--port", type=_port, default=8500, help="gRPC port; 0: none")
    add("--grpc_socket_path", default="", help="also serve gRPC on this UNIX socket")
    add("--grpc_max_threads", type=_positive, default=64, help="limit of requests that run at the same time")
    add("--grpc_channel_arguments", type=_channel_arguments, default=(), help="name=value,name=value")
    add("--ssl_config_file", type=_path, help="SSLConfig as text: serve gRPC with TLS")
    add("--rest_api_port", type=_port, default=0, help="HTTP port; 0: no REST API")
    add(
        "--rest_api_timeout_in_ms",
        type=int,
        default=30_000,
        help="limit of a request; then 504",
    )
    _add_bool(parser, "--rest_api_enable_cors_support", default=False, text="send CORS headers")
    add("--model_name", default="default", help="name of the one model (ignored with --model_config_file)")
    add("--model_base_path", default="", help="folder of its version folders (ignored with --model_config_file)")
    add("--model_config_file", type=_path, help="ModelServerConfig as text: several models, policies, labels")
    add(
        "--model_config_file_poll_wait_seconds",
        type=float,
        default=0,
        help="period of checking that file; 0: never",
    )
    add(
        "--model_control_mode",
        choices=["none", "explicit"],
        default="none",
        help="explicit: requests of the Open Inference Protocol may load and unload the configured models",
    )
    add(
        "--file_system_poll_wait_seconds",
        type=float,
        default=1,
        help="period of checking for versions; 0: check once",
    )
    _add_bool(
        parser,
        "--allow_version_labels_for_unavailable_models",
        default=False,
        text="a new label may point at a version that is not loaded yet",
    )
    _add_bool(parser, "--enable_model_warmup", default=True, text="run a model's warm-up requests before it serves")
    add("--monitoring_config_file", type=_path, help="MonitoringConfig as text: Prometheus metrics")
    _add_bool(parser, "--enable_batching", default=False, text="join waiting requests into batches")
    add("--batching_parameters_file", type=_path, help="BatchingParameters as text")
    add("--num_request_iterations_for_warmup", type=int, default=1, help="how often each warm-up request is run")
    add(
        "--runtime",
        type=Runtime,
        choices=list(Runtime),
        default=Runtime.AUTO,
        help="what loads a version: onnx: its model.onnx; tensorflow: its SavedModel; auto: model.onnx if there is one",
    )
    add("--saved_model_tags", default="serve", help="comma-separated tags of the graph to load from a SavedModel")
    add("--tensorflow_session_parallelism", type=int, default=0, help="sets both of the next; 0: one per core")
    add("--tensorflow_intra_op_parallelism", type=int, default=0, help="threads inside one operation; 0: one per core")
    add("--tensorflow_inter_op_parallelism", type=int, default=0, help="operations at a time; 0: one per core")
    for name in WITHOUT_EFFECT:
        add(f"--{name}", nargs="?", const="true", help="accepted, without effect")
    add("--version", action=_PrintVersion, nargs=0, help="print the version and exit")
    values = vars(parser.parse_args(arguments))
    if values["use_alts_credentials"] not in (None, "false", "0"):
        # Without effect, it would open a port without any encryption.
        parser.error("argument --use_alts_credentials: ALTS is not supported; use --ssl_config_file")
    values["without_effect"] = {name: values[name] for name in WITHOUT_EFFECT if values[name] is not None}
    return Flags(**{field.name: values[field.name] for field in fields(Flags)})


class _PrintVersion(argparse.Action):
    """Prints several lines, which argparse's own version action would join."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        # From the metadata: importing TensorFlow takes seconds.
        try:
            tensorflow = version("tensorflow")
        except PackageNotFoundError:
            tensorflow = "not installed"
        sys.stdout.write(f"TensorFlow ModelServer: portable\nTensorFlow Library: {tensorflow}\n")
        sys.stdout.write(f"ONNX Runtime Library: {version('onnxruntime')}\n")
        parser.exit()


def read_text_proto(path: Path, message: M) -> M:
    """Fill `message` from a file in protobuf's text format.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the file, if it cannot be read or is not such a message.
    """
    try:
        text_format.Parse(path.read_text(), message)
    except OSError as error:
        raise invalid(f"Cannot read '{path}': {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        kind = message.DESCRIPTOR.full_name
        raise invalid(f"Invalid protobuf file: '{path}': Error parsing text-format {kind}: {error}") from None
    return message


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """The content of the files that the flags name."""

    models: messages.ModelServerConfig
    monitoring: messages.MonitoringConfig
    batching: BatchingOptions | None
    tls: messages.SSLConfig | None


def read_files(flags: Flags) -> Configuration:
    """Read every configuration file.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the file or the flag that is wrong.
    """
    if flags.without_effect:
        log.warning("flags_without_effect", flags=dict(flags.without_effect))
    if not flags.port and not flags.grpc_socket_path:
        raise invalid("server_options.grpc_port is not set.")
    monitoring = messages.MonitoringConfig()
    if flags.monitoring_config_file:
        read_text_proto(flags.monitoring_config_file, monitoring)
    tls = read_text_proto(flags.ssl_config_file, messages.SSLConfig()) if flags.ssl_config_file else None
    return Configuration(models=_models(flags), monitoring=monitoring, batching=_batching(flags), tls=tls)


def read_seconds(variable: str, default: float) -> float:
    """An environment variable for what TensorFlow Serving has no flag for: 0 to 3600 seconds.

    Raises:
        StatusError: INVALID_ARGUMENT, if its value is another one.
    """
    text = os.environ.get(variable) or str(default)
    with contextlib.suppress(ValueError):
        if 0 <= (seconds := float(text)) <= 3600:
            return seconds
    raise invalid(f"{variable}: expected 0 to 3600 seconds, got {text!r}")


def _models(flags: Flags) -> messages.ModelServerConfig:
    config = messages.ModelServerConfig()
    if flags.model_config_file:
        return read_models(flags.model_config_file)
    if not flags.model_base_path:
        raise invalid("Both server_options.model_base_path and server_options.model_config_file are empty!")
    model = config.model_config_list.config.add()
    model.name = flags.model_name
    model.base_path = flags.model_base_path
    model.model_platform = "tensorflow"
    validated(config)
    return config


def read_models(path: Path) -> messages.ModelServerConfig:
    """The models of a configuration file.

    Raises:
        StatusError: INVALID_ARGUMENT, naming the file or the model that is wrong.
    """
    config = read_text_proto(path, messages.ModelServerConfig())
    validated(config)
    ignored = {
        model.name: [field for field in ("logging_config",) if model.HasField(field)]
        for model in config.model_config_list.config
    }
    if any(ignored.values()):
        log.warning("config_without_effect", path=str(path), models={name: f for name, f in ignored.items() if f})
    return config


def _batching(flags: Flags) -> BatchingOptions | None:
    if not flags.enable_batching:
        if flags.batching_parameters_file:
            raise invalid(
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true."
            )
        return None
    message = messages.BatchingParameters()
    if flags.batching_parameters_file:
        read_text_proto(flags.batching_parameters_file, message)
        ignored = [field.name for field, _ in message.ListFields() if field.name in BATCHING_WITHOUT_EFFECT]
        if ignored:
            log.warning("config_without_effect", path=str(flags.batching_parameters_file), fields=ignored)
    return BatchingOptions.from_message(message)


def _path(text: str) -> Path | None:
    """Empty means none, as in TensorFlow Serving."""
    return Path(text) if text else None


def _add_bool(parser: argparse.ArgumentParser, name: str, *, default: bool, text: str) -> None:
    parser.add_argument(name, type=_boolean, nargs="?", const=True, default=default, help=text)


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1"):
        return True
    if text.lower() in ("false", "0"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")


def _port(text: str) -> int:
    if not 0 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {text!r}")
    return int(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    pairs: list[tuple[str, int | str]] = []
    for part in filter(None, text.split(",")):
        name, separator, value = part.partition("=")
        if not separator:
            raise argparse.ArgumentTypeError(f"expected name=value, got {part!r}")
        # An argument of gRPC is an integer or a string.
        pairs.append((name, int(value) if value.removeprefix("-").isdecimal() else value))
    return tuple(pairs)
