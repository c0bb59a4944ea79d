import socket
import sys
from subprocess import run

import pytest

from serving_testing import processes
from serving_testing.processes import Process, answers, free_port, running, wait_until


def test_free_port_is_nobody_elses(monkeypatch):
    claimed = free_port()
    program = f"from serving_testing import processes as p; p.PORTS, p.TRIES = [{claimed}], 1; p.free_port()"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setattr(processes, "TRIES", 1)
        for taken in (claimed, listener.getsockname()[1]):
            monkeypatch.setattr(processes, "PORTS", [taken])
            with pytest.raises(OSError, match="no free port"):
                free_port()
        other = run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "no free port" in other.stderr


def test_running_serves_until_the_end_of_the_block(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with running(f"http.server {port} --bind 127.0.0.1", cwd=tmp_path, env={}, log=tmp_path / "log", ready=url):
        assert answers(url)
    assert not answers(url)


def test_stop_returns_the_exit_code_and_log_the_output(tmp_path):
    (tmp_path / "served.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "print('started', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = Process("served", tmp_path, {}, tmp_path / "log")
    wait_until(lambda: "started" in process.log)

    assert process.stop() == 3


def test_exited_process_fails_the_wait_with_its_log(tmp_path):
    (tmp_path / "broken.py").write_text("raise SystemExit('no model')")

    with pytest.raises(AssertionError, match="exited with 1:\nno model"):
        Process("broken", tmp_path, {}, tmp_path / "log").wait_until_ready("http://127.0.0.1:9/")


def test_wait_until_fails_after_its_time():
    with pytest.raises(AssertionError, match=r"not within 0\.1 s"):
        wait_until(lambda: False, within_s=0.1)
