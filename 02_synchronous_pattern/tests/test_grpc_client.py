"""The gRPC client against a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent import futures
from typing import TYPE_CHECKING

import grpc
import pytest

from client import grpc_client
from client.grpc_client import GrpcClient
from client.iris import CLASSES, PredictionError
from serving_testing.processes import free_port
from tests.conftest import IRIS_LABELS, IRIS_ROWS, PATTERN, IrisServer
from tfserving_protos import messages, services

if TYPE_CHECKING:
    from pathlib import Path


def test_rows_return_labels_and_probabilities(iris_server: IrisServer) -> None:
    with GrpcClient(iris_server.grpc_address) as client:
        predictions = client.predict(IRIS_ROWS)
    assert [prediction.label for prediction in predictions] == IRIS_LABELS
    assert all(sum(prediction.probabilities) == pytest.approx(1, abs=1e-5) for prediction in predictions)


def test_one_client_works_in_many_threads(iris_server: IrisServer) -> None:
    with GrpcClient(iris_server.grpc_address) as client, futures.ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: client.predict(IRIS_ROWS), range(200)))
    assert all([prediction.label for prediction in answer] == IRIS_LABELS for answer in answers)


def test_server_error_is_raised_with_its_reason(iris_server: IrisServer) -> None:
    with GrpcClient(iris_server.grpc_address, model="nothing") as client, pytest.raises(PredictionError) as caught:
        client.predict(IRIS_ROWS)
    assert str(caught.value) == "NOT_FOUND: Servable not found for request: Latest(nothing)"


class UnreliableService:
    """A PredictionService that returns UNAVAILABLE a few times, then a prediction."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0
        self.traceparents: list[object] = []

    def predict(self, request: messages.PredictRequest, context: grpc.ServicerContext) -> messages.PredictResponse:
        self.calls += 1
        self.traceparents.append(dict(context.invocation_metadata()).get("traceparent"))
        if self.calls <= self.failures:
            context.abort(grpc.StatusCode.UNAVAILABLE, "try again")
        response = messages.PredictResponse()
        response.outputs["output"].float_val.extend([0, 0, 1] * request.inputs["input"].tensor_shape.dim[0].size)
        return response


@pytest.fixture
def unreliable():
    service = UnreliableService(failures=2)
    server = grpc.server(futures.ThreadPoolExecutor(2))
    behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], service.predict)
    server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(None)


def test_every_try_continues_the_callers_trace(
    unreliable: tuple[UnreliableService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service, address = unreliable
    caller = f"00-{1:032x}-{2:016x}-01"
    monkeypatch.setenv("TRACEPARENT", caller)
    with GrpcClient(address) as client:
        client.predict(IRIS_ROWS[:1])
    assert service.traceparents == [caller] * 3


def test_unavailable_is_retried(unreliable: tuple[UnreliableService, str]) -> None:
    service, address = unreliable
    with GrpcClient(address) as client:
        assert [prediction.label for prediction in client.predict(IRIS_ROWS[:1])] == ["virginica"]
    assert service.calls == 3


def test_retries_end_after_the_limit(unreliable: tuple[UnreliableService, str]) -> None:
    service, address = unreliable
    with GrpcClient(address, retries=1) as client, pytest.raises(PredictionError, match="UNAVAILABLE: try again"):
        client.predict(IRIS_ROWS[:1])
    assert service.calls == 2


def test_deadline_covers_the_whole_call() -> None:
    release = threading.Event()

    def hang(request: messages.PredictRequest, context: grpc.ServicerContext) -> messages.PredictResponse:
        release.wait(30)
        return messages.PredictResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    behaviors = dict.fromkeys(services.METHODS[services.PREDICTION_SERVICE], hang)
    server.add_generic_rpc_handlers((services.generic_handler(services.PREDICTION_SERVICE, behaviors),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        with GrpcClient(address, timeout_s=0.2) as client, pytest.raises(PredictionError, match="DEADLINE_EXCEEDED"):
            client.predict(IRIS_ROWS)
    finally:
        release.set()
        server.stop(None)


def test_client_does_not_import_tensorflow() -> None:
    code = "import sys, client.grpc_client; print({'tensorflow', 'numpy', 'tensorflow_serving'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=PATTERN, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


# ---- command line ----


def test_command_line_prints_one_row_per_flower(iris_server: IrisServer, capsys: pytest.CaptureFixture[str]) -> None:
    grpc_client.main([*map(str, IRIS_ROWS[0] + IRIS_ROWS[2]), "--address", iris_server.grpc_address])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["setosa", "virginica"]


def test_command_line_reads_csv_and_prints_json(
    iris_server: IrisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "iris.csv"
    file.write_text("sepal_length,sepal_width,petal_length,petal_width,species\n5.9,3.0,4.2,1.5,versicolor\n\n")
    grpc_client.main(["--file", str(file), "--json", "--address", iris_server.grpc_address])
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == "versicolor"
    assert answer["input"] == [5.9, 3.0, 4.2, 1.5]
    assert len(answer["probabilities"]) == len(CLASSES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["1", "2", "3"], "error: 3 numbers are not a multiple of 4", id="wrong count"),
        pytest.param(["nan", "2", "3", "4"], "error: nan is not a finite 32-bit number", id="not a number"),
        pytest.param(["1", "1e39", "3", "4"], "error: 1e+39 is not a finite 32-bit number", id="too large"),
        pytest.param(["--file", "/nowhere.csv"], "error: [Errno 2] No such file", id="missing file"),
        pytest.param(["1", "2", "3", "4", "--retries", "0"], "error: UNAVAILABLE: ", id="no server"),
        pytest.param(["1", "2", "3", "4", "--ca", "/nowhere.pem"], "error: [Errno 2] No such file", id="no CA"),
    ],
)
def test_command_line_error_is_one_line(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "client.grpc_client", "--address", f"127.0.0.1:{free_port()}", *arguments],
        cwd=PATTERN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(("content", "number"), [("1,2,3,4\n1,2,x,4\n", 2), ("1,2,x,4\n1,2,3,4\n", 1)])
def test_malformed_csv_line_is_reported_by_number(tmp_path: Path, content: str, number: int) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    with pytest.raises(SystemExit, match=rf"line {number} does not start with 4 numbers"):
        grpc_client.main(["--file", str(file)])


def test_byte_order_mark_is_skipped(
    iris_server: IrisServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("5.1,3.5,1.4,0.2\n6.3,3.3,6.0,2.5\n", encoding="utf-8-sig")
    grpc_client.main(["--file", str(file), "--address", iris_server.grpc_address])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["setosa", "virginica"]
