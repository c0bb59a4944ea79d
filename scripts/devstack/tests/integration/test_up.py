"""`make up` as a program: what its user sees, and what it leaves behind."""

import json
import os
import pty
import re
import shutil
import signal
import socket

import httpx
import pytest

from scripts.devstack.stack import LAST_CALL_S, OUTPUT_TIMEOUT_S, STOP_GRACE_S
from scripts.devstack.table import ROOT
from scripts.devstack.tests.conftest import is_alive
from serving_testing.processes import free_port, wait_until


def get(port, path="/health"):
    return httpx.get(f"http://127.0.0.1:{port}{path}", trust_env=False)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_processes(start, signum):
    up = start("up", "90")
    up.wait_for("All ready")
    assert get(up.ports["PORT_90_GOOD"]).status_code == 200
    assert f"http://127.0.0.1:{up.ports['PORT_90_PARENT']}" in up.text()
    assert is_alive(up.pids("90 parent", "child")[0])
    up.process.send_signal(signum)
    assert up.ends() == 0
    assert "All stopped." in up.text()
    assert "child" in (ROOT / ".run/logs/90-parent.log").read_text()


def test_a_process_that_ignores_sigterm_is_killed_at_the_end_of_the_grace(start):
    assert STOP_GRACE_S + LAST_CALL_S + OUTPUT_TIMEOUT_S < 10  # what README promises
    up = start("up", "92", STOP_GRACE_S="0.5")
    up.wait_for("All ready")
    for _ in range(2):  # an impatient second Ctrl-C changes nothing
        up.process.send_signal(signal.SIGINT)
    assert up.ends() == 0
    assert "did not stop within 0.5 s of SIGTERM" in up.text()


def test_a_killed_process_is_restarted(start):
    up = start("up", "90")
    up.wait_for("All ready")
    (killed,) = up.pids("90 good")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: sum("-- ready after" in line for line in up.lines("90 good")) == 2)
    said = [line for line in up.lines("90 good") if line.startswith("--")]
    assert said[1:4] == ["-- was killed by SIGKILL", f"--     pid {killed}", "-- starting again in 0.5 s"]
    assert get(up.ports["PORT_90_GOOD"]).status_code == 200
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0


def test_children_of_a_killed_process_are_killed_before_its_restart(start):
    up = start("up", "90")
    up.wait_for("All ready")
    (orphan,) = up.pids("90 parent", "child")
    os.kill(up.pids("90 parent")[0], signal.SIGKILL)
    wait_until(lambda: len(up.pids("90 parent", "child")) == 2)
    assert not is_alive(orphan)


def test_a_process_that_exits_at_start_stops_everything(start):
    up = start("up", "91")
    assert up.ends() == 1
    assert "make up: 91 bad did not become ready: it exited with code 3" in up.text()
    assert "\n    the disk is on fire" in up.text()


def test_a_process_that_is_never_ready_stops_everything(start):
    up = start("up", "93", "90")
    assert up.ends() == 1
    assert "make up: 93 slow did not become ready within 0.3 s" in up.text()


def test_sigint_during_the_start_stops_everything(start):
    up = start("up", "94")
    wait_until(lambda: up.pids("94 patient"))
    up.process.send_signal(signal.SIGINT)
    assert up.ends() == 0
    assert "All ready" not in up.text()


def test_a_port_in_use_is_reported_before_anything_starts(start):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        up = start("up", "90", PORT_90_GOOD=str(port))
        assert up.ends() == 1
    assert f"Port {port}, which 90 good wants, is taken. To use another: PORT_90_GOOD=" in up.text()
    assert up.all_pids() == set()


def test_two_stacks_that_start_at_once_do_not_take_each_others_answers_for_their_own(start, tmp_path):
    first = start("up", "90")
    first.wait_for("All ready")
    port = first.ports["PORT_90_GOOD"]
    # As if both had found the port free: the second looks at it only once its own process is starting.
    second = start("up", "90", output=tmp_path / "second", UNCHECKED_PORTS="1", PORT_90_GOOD=str(port))
    assert second.ends() == 1
    assert f"make up: Port {port}, which 90 good wants, is taken. To use another: PORT_90_GOOD=" in second.text()
    assert get(port).status_code == 200


def test_the_same_port_twice_is_rejected(start):
    up = start("up", "90", PORT_90_GOOD="23456", PORT_90_PARENT="23456")
    assert up.ends() == 1
    assert "Port 23456, which 90 parent wants, is wanted by 90 good too" in up.text()


@pytest.mark.parametrize("port", ["many", "0", "65536", "-1"])
def test_an_invalid_port_is_rejected(start, port):
    up = start("up", "90", PORT_90_GOOD=port)
    assert up.ends() == 1
    assert f"PORT_90_GOOD={port}: a port is a number from 1 to 65535" in up.text()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_metrics_starts_a_prometheus_with_the_rules(start):
    port = free_port()
    up = start("up", "90", "--metrics", PORT_PROMETHEUS=str(port))
    up.wait_for("All ready")
    assert f"http://127.0.0.1:{port}" in up.text()
    rules = get(port, "/api/v1/rules").json()["data"]["groups"]
    assert {"recording", "causes", "slo_availability"} <= {group["name"] for group in rules}
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0


def test_metrics_without_a_prometheus_says_how_to_get_one(start):
    up = start("up", "90", "--metrics", PATH="")
    up.wait_for("All ready")
    assert "METRICS=1 needs prometheus on PATH, which is not there: apt install prometheus" in up.text()


def test_traces_are_received_from_every_process_under_its_name(start):
    up = start("up", "90", "--traces")
    up.wait_for("All ready")
    [url] = re.findall(r"Traces: (http://127.0.0.1:\d+)/traces", up.text())
    assert httpx.get(f"{url}/traces", trust_env=False).json() == []
    environ = json.loads(get(up.ports["PORT_90_GOOD"], "/env").text)
    assert (environ["OTEL_EXPORTER_OTLP_ENDPOINT"], environ["OTEL_SERVICE_NAME"]) == (url, "90-good")
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0


def test_console_is_served_and_its_address_printed_first(start):
    port = free_port()
    up = start("up", "90", CONSOLE="", PORT_CONSOLE=str(port))
    up.wait_for("All ready")
    assert re.match(rf"Console: http://127.0.0.1:{port}/#token=[\w-]{{24}}\n", up.text())
    assert "<h1>Serving patterns</h1>" in get(port, "/").text
    with httpx.stream("GET", f"http://127.0.0.1:{port}/events", trust_env=False) as events:
        assert '"90-good": {"state": "ready"}' in next(events.iter_lines())
        up.process.send_signal(signal.SIGTERM)
        assert up.ends() == 0  # also while somebody watches


def test_console_without_its_port_is_reported_and_not_fatal(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        up = start("up", "90", CONSOLE="", PORT_CONSOLE=str(port))
        up.wait_for("All ready")
    assert up.text().startswith(f"No console: port {port} is taken. To use another: PORT_CONSOLE=<port> make up; to ")


def test_console_leaves_a_port_to_the_pattern_that_wants_it(start):
    port = free_port()
    up = start("up", "90", CONSOLE="", PORT_CONSOLE=str(port), PORT_90_GOOD=str(port))
    up.wait_for("All ready")
    assert up.text().startswith(f"No console: port {port} is wanted by a pattern.")


def test_an_unknown_pattern_is_rejected(start):
    up = start("up", "05")
    assert up.ends() == 2
    assert "no pattern 05; there are 90, 91" in up.text()


def test_the_environment_overrides_defaults_but_not_fixed_settings(start):
    up = start("up", "90", LEVEL="", KIND="mine")
    up.wait_for("All ready")
    environ = json.loads(get(up.ports["PORT_90_GOOD"], "/env").text)
    assert (environ["LEVEL"], environ["KIND"]) == ("", "fixed")
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0


def test_dependencies_start_first_and_stop_last(start):
    up = start("up", "95")
    up.wait_for("All ready")
    assert re.findall("(..) .* \\| -- ready", up.text()) == ["96", "95"]
    up.process.send_signal(signal.SIGTERM)
    assert up.ends() == 0
    assert re.findall("(..) .* \\| stopped", up.text()) == ["95", "96"]


def test_no_process_survives_a_killed_supervisor(start):
    up = start("up", "90")
    up.wait_for("All ready")
    os.kill(up.process.pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, up.all_pids())))
    assert len(up.all_pids()) == 3


def test_each_process_has_its_color_on_a_terminal(start):
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        up = start("up", "90", stdout=theirs, TERM="xterm-256color", NO_COLOR="", COLUMNS="120")
        os.close(theirs)
        shown = b""
        while b"All ready" not in shown:
            shown += terminal.read(4096)
        up.process.send_signal(signal.SIGTERM)
        up.process.wait()
    # A set, for the parent's child writes its pid as well; a process with two colours would be in it twice.
    colours = set(re.findall("\x1b\\[(\\d+)m(90 \\w+) +│ \x1b\\[0mpid ", shown.decode()))
    assert sorted(label for _, label in colours) == ["90 good", "90 parent"]
    assert len({colour for colour, _ in colours}) == 2
