"""The job as a process, on SQLite and on a MySQL or MariaDB server."""

import json
import signal
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from sqlalchemy import select, text
from src.db import cruds
from src.db.models import BatchRun

from serving_testing.processes import wait_until
from tests.conftest import environment_of
from tests.processes import Stack, peak_memory_mb

ROW = [5.1, 3.5, 1.4, 0.2]


def register(database, rows):
    with database.transaction() as db:
        return [item.id for item in cruds.register_items(db, rows)]


def write(database, *values):
    """Store values as other software might."""
    with database.transaction() as db:
        for each in values:
            db.execute(text("INSERT INTO items (`values`) VALUES (:values)"), {"values": each})


def read(database, which=cruds.ALL):
    with database.transaction() as db:
        return cruds.select_items(db, which, 0, 1_000_000)


def runs(database):
    with database.transaction() as db:
        rows = db.scalars(select(BatchRun).order_by(BatchRun.id))
        return [(run.predicted_rows, run.error_rows, run.ended_datetime is not None, run.model_version) for run in rows]


def test_the_log_says_what_the_specification_says(database, stack):
    register(database, [ROW] * 10)
    job = stack.job("--once", JOB_WAIT_SECONDS="0")
    assert job.wait() == 0
    *before, last = job.actions
    assert before == [
        "waiting for batch to start (0 seconds)",
        "starting batch",
        "found 10 unpredicted items",
        "starting inference with 4 threads",
        "batch completed successfully",
    ]
    assert last.startswith("processed 10 items in ")
    assert last.endswith(" seconds")


def test_predictions_equal_scikit_learn_after_the_whole_trip(database, stack, api, flowers):
    rows, probabilities = flowers
    assert api.post("/data/list", json=[{"values": row} for row in rows]).status_code == 200
    stack.run_job()
    predicted = api.get("/data/predicted").json()
    assert [item["values"] for item in predicted] == rows
    for item, wanted in zip(predicted, probabilities, strict=True):
        assert item["prediction"] == pytest.approx({"0": wanted[0], "1": wanted[1], "2": wanted[2]}, abs=1e-5)
    assert api.get("/data/unpredicted").json() == []


def test_the_log_tells_how_far_a_long_batch_is(database, stack):
    register(database, [ROW] * 30)
    job = stack.run_job(BATCH_CHUNK_SIZE="10")
    [progress] = [line for line in job.log if line["action"] == "batch in progress"]  # the next one after 10 s
    assert (progress["rows"], progress["errors"], progress["percent"]) == (10, 0, 33)
    assert progress["rows_per_s"] > 0
    assert progress["eta_s"] >= 0


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (10_000, 500)], ids=["one at a time", "small", "large"])
def test_all_rows_are_predicted_whatever_the_sizes(database, stack, sizes):
    ids = register(database, [ROW] * 23)
    stack.run_job(BATCH_CHUNK_SIZE=str(sizes[0]), BATCH_SLICE_SIZE=str(sizes[1]))
    assert [item.id for item in read(database, cruds.PREDICTED)] == ids


def test_bad_rows_are_marked_once_and_stop_nobody(database, stack):
    register(database, [ROW])
    write(database, "[1, 2, 3]", '"text"', "[5.1, 3.5, 1.4, 99]", "null")
    register(database, [ROW])
    job = stack.run_job(BATCH_CHUNK_SIZE="3")
    logged = {line["item_id"]: line["reason"] for line in job.log if line["action"] == "item cannot be predicted"}
    failed = read(database, cruds.FAILED)
    assert {item.id: item.error for item in failed} == logged
    assert [json.loads(item.values) for item in failed] == [[1, 2, 3], "text", [5.1, 3.5, 1.4, 99], None]
    assert len(read(database, cruds.PREDICTED)) == 2
    assert read(database, cruds.UNPREDICTED) == []
    assert "found 0 unpredicted items" in stack.run_job().actions  # not tried again
    version = job.log[0]["model_version"]
    assert runs(database) == [(2, 4, True, version), (0, 0, True, version)]


def test_a_prediction_that_is_there_stays(database, stack):
    ids = register(database, [ROW] * 3)
    with database.transaction(locks=True) as db:
        cruds.register_predictions(db, {ids[1]: '{"0": 1.0, "1": 0.0, "2": 0.0}'}, "by hand")
    stack.run_job()
    assert json.loads(read(database)[1].prediction) == {"0": 1, "1": 0, "2": 0}
    assert len(read(database, cruds.PREDICTED)) == 3


def test_repredict_replaces_the_predictions_of_an_older_model(database, stack):
    ids = register(database, [ROW] * 5)
    write(database, "[1, 2, 3]")
    bad = read(database)[-1].id
    with database.transaction(locks=True) as db:
        old = '{"0": 0.1, "1": 0.2, "2": 0.7}'
        cruds.register_predictions(db, {ids[0]: old, ids[1]: old, ids[2]: old, bad: old}, "older")
        cruds.register_predictions(db, {ids[3]: old}, "oldest")
    job = stack.run_job("--repredict", "older", BATCH_CHUNK_SIZE="2")
    assert "found 4 items of model older" in job.actions
    new = [json.loads(item.prediction)["0"] > 0.9 if item.prediction else None for item in read(database)]
    # A row that cannot be predicted any more keeps what it had; one that waits goes on waiting.
    assert new == [True, True, True, False, None, False]
    assert read(database, cruds.FAILED) == []
    again = stack.job("--no-wait", "--repredict", job.log[0]["model_version"])
    assert again.wait() == 1
    assert "current model" in again.log[-1]["reason"]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(database, stack, signal_number):
    job = stack.job(JOB_WAIT_SECONDS="1000")
    job.read_until("waiting for batch")
    job.process.send_signal(signal_number)
    assert job.wait() == 0
    assert runs(database) == []


def test_a_signal_ends_the_batch_after_the_chunk_in_hand(database, stack):
    register(database, [ROW] * 20_000)
    job = stack.job("--no-wait", BATCH_CHUNK_SIZE="50")
    job.read_until("starting inference")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    assert "batch stopped early; the next one goes on from here" in job.actions
    done = len(read(database, cruds.PREDICTED))
    assert done % 50 == 0
    assert done < 20_000
    assert runs(database)[0][:3] == (done, 0, True)


def test_a_killed_job_loses_nothing_and_the_next_one_goes_on(database, stack):
    register(database, [ROW] * 20_000)
    job = stack.job("--no-wait", BATCH_CHUNK_SIZE="100")
    job.read_until("starting inference")
    job.process.kill()
    assert job.wait() == -signal.SIGKILL
    # What the killed job says that it has done is what is done: both are one transaction.
    [(done, errors, has_ended, _)] = runs(database)
    assert (len(read(database, cruds.PREDICTED)), 0, False) == (done, errors, has_ended)
    assert done % 100 == 0
    stack.run_job()
    assert len(read(database, cruds.PREDICTED)) == 20_000
    assert [run[0] for run in runs(database)] == [done, 20_000 - done]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MODEL_FILEPATH", "/nowhere/iris_svc.onnx", "there is no model at"),
        ("LABEL_FILEPATH", "/nowhere/label.json", "there are no labels at"),
        ("DATABASE_URL", "mysql://root:secret@127.0.0.1:1/x", "does not answer"),
        ("DATABASE_URL", f"sqlite:///{__file__}", "cannot be used: file is not a database"),
        ("DATABASE_URL", f"sqlite:///{__file__}/items.db", "cannot be made"),
    ],
)
def test_what_is_missing_ends_the_job_with_1(models, tmp_path, variable, value, reason):
    stack = Stack(environment_of(models, f"sqlite:///{tmp_path}/items.db"))
    job = stack.job("--no-wait", DATABASE_WAIT_S="0", **{variable: value})
    assert job.wait() == 1
    assert (job.log[-1]["action"], job.log[-1]["level"]) == ("batch failed", "CRITICAL")
    assert reason in job.log[-1]["reason"]
    assert "secret" not in str(job.log)


@contextmanager
def pushgateway():
    pushed = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            pushed.append((self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}", pushed
        server.shutdown()


def test_metrics_are_written_and_pushed(database, stack, tmp_path):
    register(database, [ROW] * 3)
    write(database, "[]")
    with pushgateway() as (url, pushed):
        stack.run_job(PUSHGATEWAY_URL=url, METRICS_TEXTFILE=str(tmp_path / "batch.prom"))
    [(path, content)] = pushed
    assert path.startswith("/metrics/job/batch_pattern/instance/")
    written = (tmp_path / "batch.prom").read_text()
    figures = dict(line.split() for line in written.splitlines() if not line.startswith("#"))
    assert (float(figures["batch_rows_predicted"]), float(figures["batch_rows_failed"])) == (3, 1)
    assert float(figures["batch_duration_seconds"]) > 0
    assert abs(float(figures["batch_last_success_timestamp_seconds"]) - datetime.now(UTC).timestamp()) < 60
    assert content == written


@pytest.mark.parametrize("kind", ["nobody there", "no gateway", "no URL"])
def test_metrics_that_cannot_be_pushed_are_no_failure(database, stack, kind):
    register(database, [ROW])
    with socket.create_server(("127.0.0.1", 0)) as other:
        there = f"http://127.0.0.1:{other.getsockname()[1]}"
        url = {"nobody there": "http://127.0.0.1:1", "no gateway": there, "no URL": "http://host:port"}[kind]

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"no HTTP\r\n")

        if kind == "no gateway":
            threading.Thread(target=answer).start()
        job = stack.run_job(PUSHGATEWAY_URL=url)
    assert "metrics not published" in job.actions
    assert len(read(database, cruds.PREDICTED)) == 1


def test_memory_does_not_grow_with_the_rows(database, stack):
    """While a job works on, the peak of its memory stays where it was after the first chunks."""
    register(database, [ROW] * 60_000)
    job = stack.job("--no-wait", BATCH_CHUNK_SIZE="1000")

    def peak_mb_after(count):
        wait_until(lambda: len(read(database, cruds.UNPREDICTED)) <= 60_000 - count)
        return peak_memory_mb(job.process.pid)

    early, late = peak_mb_after(5_000), peak_mb_after(50_000)
    assert job.wait() == 0
    assert late < 250
    assert late - early < 25
