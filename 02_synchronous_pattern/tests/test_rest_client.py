"""The REST client against a real server."""

from __future__ import annotations

import http.server
import json
import threading

import pytest

from client import rest_client
from client.iris import PredictionError
from client.rest_client import RestClient
from serving_testing.processes import free_port
from tests.conftest import IRIS_LABELS, IRIS_ROWS, IrisServer


def test_rows_return_labels_and_probabilities(iris_server: IrisServer) -> None:
    with RestClient(iris_server.rest_url) as client:
        for _ in range(3):
            predictions = client.predict(IRIS_ROWS)
            assert [prediction.label for prediction in predictions] == IRIS_LABELS
            assert all(sum(p.probabilities) == pytest.approx(1, abs=1e-5) for p in predictions)


def test_server_error_is_raised_with_its_reason(iris_server: IrisServer) -> None:
    with RestClient(iris_server.rest_url, model="nothing") as client, pytest.raises(PredictionError) as caught:
        client.predict(IRIS_ROWS)
    assert str(caught.value) == "HTTP 404: Servable not found for request: Latest(nothing)"


class ScriptedServer(http.server.ThreadingHTTPServer):
    """The statuses to return, and the number of requests so far."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ScriptedHandler)
        self.calls = 0
        self.traceparent: str | None = None
        self.statuses: list[int] = []
        self.release = threading.Event()
        self.address = f"127.0.0.1:{self.server_port}"


class ScriptedHandler(http.server.BaseHTTPRequestHandler):
    """Returns the statuses that the test lists, then a prediction."""

    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.traceparent = self.headers["traceparent"]
        self.server.calls += 1
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        body = json.dumps({"predictions": [[0, 0, 1]]} if status == 200 else {"error": f"status {status}"}).encode()
        if status == 0:
            self.server.release.wait(30)
        self.send_response(status or 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def scripted():
    server = ScriptedServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("statuses", "calls", "error"),
    [
        pytest.param([503, 503], 3, None, id="retried"),
        pytest.param([503] * 9, 4, "HTTP 503: status 503", id="retried up to the limit"),
        pytest.param([400], 1, "HTTP 400: status 400", id="bad request"),
        pytest.param([500], 1, "HTTP 500: status 500", id="internal error"),
    ],
)
def test_only_503_is_retried(scripted: ScriptedServer, statuses: list[int], calls: int, error: str | None) -> None:
    scripted.statuses = statuses
    with RestClient(scripted.address) as client:
        if error:
            with pytest.raises(PredictionError, match=error):
                client.predict(IRIS_ROWS[:1])
        else:
            assert client.predict(IRIS_ROWS[:1])[0].label == "virginica"
    assert scripted.calls == calls


def test_deadline_exceeded_is_reported(scripted: ScriptedServer) -> None:
    scripted.statuses = [0]
    with RestClient(scripted.address, timeout_s=0.2) as client, pytest.raises(PredictionError, match="DEADLINE_EXC"):
        client.predict(IRIS_ROWS[:1])


CALLER = f"00-{1:032x}-{2:016x}-01"


@pytest.mark.parametrize(
    ("variable", "sent"),
    [(CALLER, CALLER), ("", None), ("00-1-2-3", None), (f"{CALLER}\r\nx: y", None)],
    ids=["valid", "none", "malformed", "two lines"],
)
def test_the_callers_trace_of_the_environment_is_continued(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch, variable: str, sent: str | None
) -> None:
    monkeypatch.setenv("TRACEPARENT", variable)
    with RestClient(scripted.address) as client:
        client.predict(IRIS_ROWS[:1])
    assert scripted.traceparent == sent


def test_the_span_of_a_traced_program_comes_before_the_environment(
    scripted: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = pytest.importorskip("opentelemetry.trace", reason="the program that calls is traced, not the client")
    monkeypatch.setenv("TRACEPARENT", CALLER)
    span = trace.NonRecordingSpan(trace.SpanContext(3, 4, is_remote=False, trace_flags=trace.TraceFlags(1)))
    with RestClient(scripted.address) as client:
        with trace.use_span(span):
            client.predict(IRIS_ROWS[:1])
        assert scripted.traceparent == f"00-{3:032x}-{4:016x}-01"
        client.predict(IRIS_ROWS[:1])
        assert scripted.traceparent == CALLER


def test_command_line_prints_json(iris_server: IrisServer, capsys: pytest.CaptureFixture[str]) -> None:
    rest_client.main(["--json", *map(str, IRIS_ROWS[2]), "--address", iris_server.rest_url])
    assert json.loads(capsys.readouterr().out)["label"] == "virginica"


def test_unreachable_server_is_one_line() -> None:
    with pytest.raises(SystemExit) as caught:
        rest_client.main(["1", "2", "3", "4", "--retries", "0", "--address", f"127.0.0.1:{free_port()}"])
    assert str(caught.value).startswith("error: UNAVAILABLE: cannot connect to http://127.0.0.1:")
    assert "\n" not in str(caught.value)
