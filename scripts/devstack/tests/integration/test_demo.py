"""`make demo` as a program, and the check of its answers."""

import json
import os
import signal
import subprocess
import sys
from xml.etree import ElementTree as ET

import httpx
import pytest

from scripts.devstack.demo import ports_of_others
from scripts.devstack.patterns import DEMOS, PATTERNS
from scripts.devstack.stack import free_ports
from scripts.devstack.table import ROOT
from serving_testing.processes import NO_COVERAGE, wait_until

NOT_FOR_CLIENTS = {"PORT_03_REDIS", "PORT_03_WORKER", "PORT_07_REDIS", "PORT_07_WORKER"}

# Of every process: what it is, and whether it imports TensorFlow, also without its __init__. The coverage of what the
# demo starts does not count.
RECORDER = f"""
import json, os, sys

os.environ |= {NO_COVERAGE}

def record(has_tensorflow):
    with open(os.environ["RECORDS"], "a") as file:
        file.write(json.dumps({{"argv": sys.orig_argv, "has_tensorflow": has_tensorflow}}) + "\\n")

def hook(event, arguments):
    if event == "import" and arguments[0].startswith("tensorflow."):
        record(True)

record(False)
sys.addaudithook(hook)
"""


@pytest.mark.parametrize(
    ("numbers", "environ"),
    [pytest.param([*DEMOS], {}, id="all"), pytest.param(["06"], {"API_KEY": "secret"}, id="06 with a key")],
)
def test_the_demo_of_each_pattern_succeeds_without_tensorflow(numbers, environ, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(RECORDER)
    ports = {name: str(port) for name, port in free_ports(numbers).items()}
    command = [sys.executable, "-m", "scripts.devstack.demo", *numbers]
    recorder = {"PYTHONPATH": str(tmp_path), "RECORDS": str(tmp_path / "records")}
    env = os.environ | ports | environ | recorder
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "requests, 0 wrong. All stopped." in done.stdout
    asked = {name for name, port in ports.items() if f"127.0.0.1:{port}" in done.stdout}
    assert asked == {*ports} - NOT_FOR_CLIENTS
    processes = [json.loads(line) for line in (tmp_path / "records").read_text().splitlines()]
    started = {" ".join(each["argv"]) for each in processes}
    assert any("scripts.devstack.demo" in each for each in started)
    assert "02" not in numbers or any("-m model_server" in each for each in started)
    # Only the builders of models may, on a machine that has none yet.
    users = {" ".join(each["argv"]) for each in processes if each["has_tensorflow"]}
    assert {each for each in users if "models.build" not in each and "build_model" not in each} == set()


def test_patterns_that_others_depend_on_get_free_ports_unless_asked_otherwise(monkeypatch):
    assert ports_of_others(["03"], PATTERNS).keys() == {"PORT_02_GRPC", "PORT_02_REST"}
    assert ports_of_others(["02", "03"], PATTERNS) == {}
    monkeypatch.setenv("PORT_02_REST", "8501")
    assert ports_of_others(["03"], PATTERNS).keys() == {"PORT_02_GRPC"}


def test_correct_responses_are_printed_and_summarized(start):
    # Of an earlier demo, and of `make up`, which may be running.
    leftover, of_up = ROOT / ".run/demo/90/leftover", ROOT / ".run/90/state"
    for state in (leftover, of_up):
        state.parent.mkdir(parents=True, exist_ok=True)
        state.touch()
    demo = start("demo", "90")
    assert demo.ends() == 0
    assert f"GET  http://127.0.0.1:{demo.ports['PORT_90_GOOD']}/env" in demo.text()
    assert '"LEVEL": "info"' in demo.text()
    assert "What was sent, and what came back" in demo.text()
    assert "1 requests, 0 wrong. All stopped." in demo.text()
    assert (leftover.exists(), of_up.exists()) == (False, True)
    of_up.unlink()


def test_a_running_stack_is_left_alone(start, tmp_path):
    up = start("up", "90")
    up.wait_for("All ready")
    taken = {name: str(port) for name, port in up.ports.items()}
    demo = start("demo", "90", output=tmp_path / "demo", **taken)
    assert demo.ends() == 1
    assert f"make demo: Port {taken['PORT_90_GOOD']}, which 90 good wants, is taken. To use another: " in demo.text()
    assert httpx.get(f"http://127.0.0.1:{taken['PORT_90_GOOD']}/env", trust_env=False).status_code == 200
    assert len(up.pids("90 good")) == 1


def test_svg_option_draws_a_self_contained_summary(start, tmp_path):
    svg = tmp_path / "demo.svg"
    assert start("demo", "--svg", str(svg), "90").ends() == 0
    text = svg.read_text(encoding="utf-8")
    assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"
    assert "1&#160;requests,&#160;0&#160;wrong.&#160;All&#160;stopped." in text
    assert "url(&quot;" not in text
    assert "@font-face" not in text


def test_output_is_plain_ascii_without_a_terminal(start):
    demo = start("demo", "90", LEVEL="info", FLOWER="あやめ")
    assert demo.ends() == 0
    assert demo.output.read_bytes().isascii()
    assert "\x1b" not in demo.text()


def test_a_wrong_response_ends_its_pattern_and_fails_the_demo(start):
    demo = start("demo", "92", "90", STOP_GRACE_S="0.5")
    assert demo.ends() == 1
    assert "/env: answer.HOME is '" in demo.text()
    assert "2 requests, 1 wrong" in demo.text()


def test_a_refused_connection_fails_the_demo(start):
    demo = start("demo", "95")
    assert demo.ends() == 1
    assert "WRONG: GET http://127.0.0.1:1/env: no answer" in demo.text()


def test_a_process_that_does_not_start_fails_the_demo(start):
    demo = start("demo", "91")
    assert demo.ends() == 1
    assert "make demo: 91 bad did not become ready" in demo.text()


def test_sigint_stops_the_demo(start):
    log = ROOT / ".run/demo/logs/94-patient.log"
    log.unlink(missing_ok=True)
    demo = start("demo", "94")
    wait_until(lambda: log.exists() and log.read_text())
    demo.process.send_signal(signal.SIGINT)
    assert demo.ends() == 130
