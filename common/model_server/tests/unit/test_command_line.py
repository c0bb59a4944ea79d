"""Command lines and configuration files that cannot work: an exit code and one line with the reason."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import structlog
from structlog.testing import capture_logs

from model_server import flags as command_line
from model_server.__main__ import main
from model_server.manager import Poller
from model_server.status import StatusError
from serving_testing.processes import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs the command with flags that it must reject; returns its exit code and the last line of standard error."""

    def failing(*flags: str) -> tuple[int, str]:
        ports = [f"--port={free_port()}", f"--rest_api_port={free_port()}"]
        monkeypatch.setattr(sys, "argv", ["tensorflow_model_server", *ports, *flags])
        with pytest.raises(SystemExit) as caught:
            main()
        code = caught.value.code
        if isinstance(code, str):
            # Python prints it to standard error and exits with 1.
            return 1, code
        return int(code or 0), capsys.readouterr().err.strip().splitlines()[-1]

    yield failing
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        pytest.param([], 1, "model_base_path and server_options.model_config_file are empty!", id="nothing to serve"),
        pytest.param(["--model_config_file=/nowhere"], 1, "Cannot read '/nowhere'", id="no config file"),
        pytest.param(["--unknown_flag=1"], 2, "unrecognized arguments: --unknown_flag=1", id="unknown flag"),
        pytest.param(["--enable_batching=maybe"], 2, "expected true or false, got 'maybe'", id="not a boolean"),
        pytest.param(["--use_alts_credentials"], 2, "ALTS is not supported", id="no encryption"),
        pytest.param(["--port=99999"], 2, "expected 0 to 65535, got '99999'", id="port"),
        pytest.param(["--rest_api_port=x"], 2, "argument --rest_api_port: invalid", id="not a port"),
        pytest.param(["--grpc_max_threads=0"], 2, "expected 1 or more, got '0'", id="threads"),
        pytest.param(["--grpc_channel_arguments=a"], 2, "expected name=value, got 'a'", id="channel argument"),
        pytest.param(
            ["--model_base_path=/m", "--batching_parameters_file=/b"], 1, "without setting", id="batching is off"
        ),
        pytest.param(["--model_base_path=relative"], 1, "to have an absolute path", id="relative base path"),
    ],
)
def test_invalid_command_line_exits_with_the_reason(run: Run, flags: list[str], code: int, message: str) -> None:
    found = run(*flags)
    assert found[0] == code
    assert message in found[1]


# Every flag of tensorflow_model_server up to 2.20, and some of a later one, in the forms that it accepts.
ALL_FLAGS = """
--port=8500 --grpc_socket_path= --rest_api_port=8501 --rest_api_num_threads=16 --rest_api_timeout_in_ms=30000
--rest_api_enable_cors_support=false --enable_batching=false --allow_version_labels_for_unavailable_models
--batching_parameters_file= --enable_per_model_batching_parameters=false --model_config_file=
--model_config_file_poll_wait_seconds=0 --model_name=m --model_base_path=/m --num_load_threads=0
--num_unload_threads=0 --max_num_load_retries=5 --load_retry_interval_micros=60000000
--file_system_poll_wait_seconds=1 --flush_filesystem_caches=true --tensorflow_session_parallelism=0
--tensorflow_session_config_file= --tensorflow_intra_op_parallelism=2 --tensorflow_inter_op_parallelism=2
--use_alts_credentials=false --ssl_config_file= --platform_config_file= --per_process_gpu_memory_fraction=0.5
--saved_model_tags=serve --grpc_channel_arguments= --grpc_max_threads=8 --enable_model_warmup=true
--num_request_iterations_for_warmup=2 --monitoring_config_file= --remove_unused_fields_from_bundle_metagraph
--prefer_tflite_model=false --num_tflite_pools=1 --num_tflite_interpreters_per_pool=1
--enable_signature_method_name_check=false --xla_cpu_compilation_enabled=false --xla_gpu_compilation_enabled=false
--enable_profiler --thread_pool_factory_config_file= --mixed_precision= --skip_initialize_tpu=false
--enable_grpc_healthcheck_service --enable_serialization_as_tensor_content=false
"""


def test_every_flag_of_tensorflow_serving_is_accepted() -> None:
    flags = command_line.parse(ALL_FLAGS.split())
    assert (flags.tensorflow_intra_op_parallelism, flags.num_request_iterations_for_warmup) == (2, 2)
    with capture_logs() as logs:
        configuration = command_line.read_files(flags)
    assert [model.name for model in configuration.models.model_config_list.config] == ["m"]
    [line] = logs
    assert line["event"] == "flags_without_effect"
    assert line["flags"]["rest_api_num_threads"] == "16"
    assert line["flags"]["enable_profiler"] == "true"
    assert not {"port", "tensorflow_intra_op_parallelism", "saved_model_tags"} & set(line["flags"])


def test_configuration_file_with_every_field_starts(tmp_path: Path) -> None:
    file = tmp_path / "models.config"
    file.write_text("""
        model_config_list {
          config { name: "old" base_path: "/old" model_type: TENSORFLOW }
          config {
            name: "new" base_path: "/new" model_platform: "tensorflow" model_version_policy { all {} }
            version_labels { key: "stable" value: 1 }
            logging_config {
              log_collector_config { type: "" filename_prefix: "/tmp/log" } sampling_config { sampling_rate: 0.1 }
            }
          }
        }""")
    batching = tmp_path / "batching.config"
    batching.write_text(
        "max_batch_size { value: 4 } max_execution_batch_size { value: 2 } pad_variable_length_inputs: true "
        'enable_large_batch_splitting { value: true } thread_pool_name { value: "pool" }'
    )
    flags = [f"--model_config_file={file}", "--enable_batching", f"--batching_parameters_file={batching}"]
    with capture_logs() as logs:
        configuration = command_line.read_files(command_line.parse(flags))
    assert [model.name for model in configuration.models.model_config_list.config] == ["old", "new"]
    assert [line["event"] for line in logs] == ["config_without_effect"] * 2
    assert logs[0]["models"] == {"new": ["logging_config"]}
    assert "max_execution_batch_size" in logs[1]["fields"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'tensorflow' model_type: OTHER } }",
            "Illegal setting both model_type(deprecated) and model_platform.",
            id="type and platform",
        ),
        pytest.param(
            "model_config_list { config { name: 'a' base_path: '/a' model_type: OTHER } }",
            "Model a requests unsupported model_type OTHER",
            id="type",
        ),
        pytest.param(
            "model_config_list { oops }",
            "Invalid protobuf file: '{file}': Error parsing text-format tensorflow.serving.ModelServerConfig: ",
            id="syntax",
        ),
        pytest.param(
            "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'pytorch' } }",
            "Model a requests unsupported platform pytorch",
            id="platform",
        ),
    ],
)
def test_invalid_configuration_exits_with_the_reason(run: Run, tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "models.config"
    file.write_text(content)
    code, line = run(f"--model_config_file={file}")
    assert code == 1
    assert line.startswith("Failed to start server. Error: ")
    assert message.replace("{file}", str(file)) in line


@pytest.mark.parametrize("flag", ["port", "rest_api_port"])
def test_port_in_use_exits_with_the_port(run: Run, models: Path, flag: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        code, line = run(f"--{flag}={port}", f"--model_base_path={models}/counted")
    assert code == 1
    assert str(port) in line


def test_poll_period_of_zero_never_polls() -> None:
    stop, calls = threading.Event(), {"never": 0, "often": 0}

    def count(name: str) -> None:
        calls[name] += 1

    poller = Poller(stop, [(0, lambda: count("never")), (0.001, lambda: count("often"))])
    poller.start()
    wait_until(lambda: calls["often"] > 20)
    stop.set()
    poller.join()
    assert calls["never"] == 0


def test_version_flag_prints_all_versions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tensorflow_model_server", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.splitlines() == [
        "TensorFlow ModelServer: portable",
        f"TensorFlow Library: {importlib.metadata.version('tensorflow')}",
        f"ONNX Runtime Library: {importlib.metadata.version('onnxruntime')}",
    ]


@pytest.mark.parametrize("value", ["soon", "-1", "nan", "4000"])
def test_wrong_seconds_are_rejected_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("KEEP_ALIVE_S", value)
    with pytest.raises(StatusError, match=f"KEEP_ALIVE_S: expected 0 to 3600 seconds, got '{value}'"):
        command_line.read_seconds("KEEP_ALIVE_S", 75)
