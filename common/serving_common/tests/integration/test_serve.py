"""A service as a real process: start, stop, logs."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import httpx
import pytest

from serving_common.settings import HttpSettings
from serving_testing.processes import Process, free_port, running, wait_until

COMMON = Path(__file__).parents[2]
Start = Callable[..., AbstractContextManager[Process]]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def start(tmp_path: Path, port: int) -> Start:
    env = {"PORT": str(port), "LOG_FORMAT": "json"}
    return partial(running, "tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log")


@pytest.fixture
def service(start: Start, port: int) -> Iterator[Process]:
    with start(ready=f"http://127.0.0.1:{port}/health") as process:
        yield process


def events(process: Process) -> list[dict[str, object]]:
    return [json.loads(line) for line in process.log.splitlines()]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_requests_in_flight_and_exits_0(service, port, signal_number):
    with ThreadPoolExecutor() as pool:
        pending = pool.submit(httpx.get, f"http://127.0.0.1:{port}/slow/1", timeout=10)
        wait_until(lambda: "slow_entered" in service.log)
        service.popen.send_signal(signal_number)

        assert pending.result().json() == "done"
    assert service.popen.wait(10) == 0
    assert events(service)[-1]["action"] == "service_stopped"


def test_drain_delay_keeps_the_port_open_but_not_ready(start, port):
    base = f"http://127.0.0.1:{port}"
    # Nothing here waits that long: the second signal ends the delay.
    with start(ready=f"{base}/health", env={"PORT": str(port), "DRAIN_DELAY_S": "3600"}) as process:
        with httpx.Client(base_url=base) as client:
            assert "connection" not in client.get("/health/ready").headers
            process.popen.send_signal(signal.SIGTERM)
            wait_until(lambda: client.get("/health/ready").status_code == 503)
            refused = client.get("/health/ready")
            assert refused.json() == {"status": "not ready", "reason": "the service is stopping"}
            assert client.get("/health/live").status_code == 200
            wait_until(lambda: client.get("/slow/0").headers.get("connection") == "close")
            assert client.get("/slow/0").json() == "done"
        assert process.stop() == 0


def test_request_over_the_grace_period_is_aborted(start, port, tmp_path):
    env = {"PORT": str(port), "SHUTDOWN_GRACE_S": "1"}
    ready = f"http://127.0.0.1:{port}/health"
    with (
        running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log", ready=ready) as process,
        ThreadPoolExecutor() as pool,
    ):
        pending = pool.submit(httpx.get, f"http://127.0.0.1:{port}/slow/30", timeout=60)
        wait_until(lambda: "slow_entered" in process.log)

        assert process.stop() == 0
        with pytest.raises(httpx.HTTPError):
            pending.result().raise_for_status()


def test_api_key_from_a_file_is_accepted_and_never_logged(port, tmp_path):
    (tmp_path / "key").write_text("hunter2\n")
    env = {"PORT": str(port), "LOG_LEVEL": "debug", "API_KEY_FILE": str(tmp_path / "key")}
    ready = f"http://127.0.0.1:{port}/health"
    with running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log", ready=ready) as process:
        answers = [
            httpx.get(f"http://127.0.0.1:{port}/limited?limit=3", headers={"X-API-Key": key}).status_code
            for key in ("hunter2", "hunter3")
        ]
        wait_until(lambda: process.log.count("request_completed") >= 2)

    assert answers == [200, 401]
    assert "hunter" not in process.log


def test_head_of_health_has_no_body_and_leaves_the_connection_usable(service, port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        for path in ("/health", "/health/live", "/health/ready"):
            head, get = client.head(path), client.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["Content-Length"] == get.headers["Content-Length"]
    wait_until(lambda: "service_started" in service.log)
    assert "request_completed" not in service.log  # quiet


def test_idle_connection_stays_open_for_keep_alive_s(start, port, tmp_path):
    """The default is longer than uvicorn's 5 s, at which a load balancer's pooled connections broke."""
    assert HttpSettings().keep_alive_s > 60
    ready = f"http://127.0.0.1:{port}/health"
    env = {"PORT": str(port), "KEEP_ALIVE_S": "1"}
    with (
        running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log", ready=ready),
        socket.create_connection(("127.0.0.1", port), timeout=30) as connection,
    ):
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        asked = time.monotonic()
        received = b"".join(iter(lambda: connection.recv(65536), b""))  # until it is closed, 30 s at most
        assert received.startswith(b"HTTP/1.1 200")
        assert time.monotonic() - asked > 0.9


def test_logs_one_json_line_per_request(service, port):
    httpx.get(f"http://127.0.0.1:{port}/limited?limit=3", headers={"X-Request-ID": "abc"})
    wait_until(lambda: any(event["action"] == "request_completed" for event in events(service)))

    [line] = [event for event in events(service) if event["action"] == "request_completed"]
    assert list(line)[:4] == ["timestamp", "level", "component", "action"]
    assert line["level"] == "INFO"
    assert line["component"] == "example"
    assert line["request_id"] == "abc"
    assert (line["method"], line["path"], line["status"]) == ("GET", "/limited", 200)
    assert isinstance(line["duration_ms"], float)


def test_unexpected_error_is_logged_with_its_traceback(service, port):
    assert httpx.get(f"http://127.0.0.1:{port}/errors/unknown").status_code == 500
    wait_until(lambda: "request_failed" in service.log)

    [line] = [event for event in events(service) if event["action"] == "request_failed"]
    assert "RuntimeError: a secret detail" in str(line["exception"])
    assert line["request_id"]


def test_startup_error_is_one_line_and_exit_code_1(start, tmp_path):
    env = {"MODEL_FILEPATH": "/no/model.onnx", "LOG_FORMAT": "json"}
    with running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log") as process:
        assert process.popen.wait(30) == 1

    [line] = events(process)
    assert (line["level"], line["action"]) == ("CRITICAL", "startup_failed")
    assert line["reason"] == "there is no model at /no/model.onnx"


def test_invalid_setting_is_one_line_and_exit_code_1(start, tmp_path):
    with running("tests.apps.example", cwd=COMMON, env={"PORT": "x"}, log=tmp_path / "log") as process:
        assert process.popen.wait(30) == 1

    assert process.log.startswith("configuration error: PORT: ")
    assert process.log.count("\n") == 1


def test_taken_port_is_one_line_and_exit_code_1(service, start, tmp_path, port):
    env = {"PORT": str(port), "LOG_FORMAT": "json"}
    with running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "second") as second:
        assert second.popen.wait(30) == 1

    [line] = events(second)
    assert (line["level"], line["action"]) == ("CRITICAL", "startup_failed")
    assert str(line["reason"]).startswith(f"cannot listen on 127.0.0.1 port {port}: Address already in use")
    assert "service_started" not in second.log


def test_app_runs_under_the_uvicorn_command(port, tmp_path):
    module = f"uvicorn tests.apps.example:app --port {port}"
    with running(module, cwd=COMMON, env={}, log=tmp_path / "log", ready=f"http://127.0.0.1:{port}/health"):
        pass


def test_importing_an_app_reads_no_environment():
    code = "import os; os.environ['PORT'] = 'x'; import tests.apps.example"

    subprocess.run([sys.executable, "-c", code], cwd=COMMON, check=True)


def test_unknown_attribute_of_an_app_module_raises():
    import tests.apps.example as module

    with pytest.raises(AttributeError):
        _ = module.something_else


def test_console_tracebacks_omit_local_variables(start, port, tmp_path):
    env = {"PORT": str(port), "LOG_FORMAT": "console"}
    ready = f"http://127.0.0.1:{port}/health"
    with running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log", ready=ready) as process:
        httpx.get(f"http://127.0.0.1:{port}/errors/unknown")
        wait_until(lambda: "a secret detail" in process.log)
    assert "Traceback" in process.log
    assert " locals " not in process.log


def test_console_log_format(start, port, tmp_path):
    env = {"PORT": str(port), "LOG_FORMAT": "console"}
    ready = f"http://127.0.0.1:{port}/health"
    with running("tests.apps.example", cwd=COMMON, env=env, log=tmp_path / "log", ready=ready) as process:
        pass

    assert "service_started" in process.log
    assert not process.log.startswith("{")


@pytest.mark.parametrize(
    ("is_up", "path", "code"), [(True, "", 0), (True, "/health/live", 0), (True, "/missing", 1), (False, "", 1)]
)
def test_health_check_exit_code(is_up, path, code, port, tmp_path, request):
    if is_up:
        request.getfixturevalue("service")
    env = {"PORT": str(port), "HEALTH_PATH": path, "http_proxy": f"http://127.0.0.1:{free_port()}"}
    with running("serving_common.healthcheck", cwd=COMMON, env=env, log=tmp_path / "check") as check:
        assert check.popen.wait(30) == code
