"""Command lines and configuration files that cannot work: an exit code and one line with the reason."""

from __future__ import annotations

import importlib.metadata
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import structlog

from model_server.__main__ import main
from model_server.manager import Poller
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
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


def test_version_flag_prints_both_versions(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tensorflow_model_server", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out.splitlines() == [
        "TensorFlow ModelServer: portable",
        f"TensorFlow Library: {importlib.metadata.version('tensorflow')}",
    ]
