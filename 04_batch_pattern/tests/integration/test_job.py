"""The job, on SQLite and on a MySQL or MariaDB server: what it stores, what it logs, how it stops."""

import hashlib
import json
import signal
import socket
import threading
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from sqlalchemy import select, text

from serving_testing.processes import wait_until
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src.constants import IDEMPOTENCY_KEY_LIFETIME
from src.db import cruds
from src.db.models import BatchRun, IdempotencyKey
from tests.conftest import ROW, count, environment_of, read, register_rows, write
from tests.processes import BatchSystem, peak_memory_mb


def events(log):
    return [line["event"] for line in log]


def runs(database):
    with database.transaction() as db:
        rows = db.scalars(select(BatchRun).order_by(BatchRun.id))
        return [(run.predicted_rows, run.error_rows, run.ended_datetime is not None, run.model_version) for run in rows]


def test_log_lines_are_those_of_the_specification(database, system):
    register_rows(database, [ROW] * 10)
    job = system.job("--once", JOB_WAIT_SECONDS="0")
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


def test_predictions_equal_scikit_learn_from_post_to_get(api, run_batch, flowers):
    rows, probabilities = flowers
    assert api.post("/data/list", json=[{"values": row} for row in rows]).status_code == 200
    run_batch()
    predicted = api.get("/data/predicted").json()
    assert [item["values"] for item in predicted] == rows
    for item, wanted in zip(predicted, probabilities, strict=True):
        assert item["prediction"] == pytest.approx({"0": wanted[0], "1": wanted[1], "2": wanted[2]}, abs=1e-5)
    assert api.get("/data/unpredicted").json() == []


def test_long_batch_logs_its_progress(database, run_batch):
    register_rows(database, [ROW] * 30)
    # The next line would come after PROGRESS_INTERVAL_S.
    [progress] = [line for line in run_batch(batch_chunk_size=10) if line["event"] == "batch in progress"]
    assert (progress["rows"], progress["errors"], progress["percent"]) == (10, 0, 33)
    assert progress["rows_per_s"] > 0
    assert progress["eta_s"] >= 0


@pytest.mark.parametrize("sizes", [(1, 1), (7, 3), (10_000, 500)], ids=["one at a time", "small", "large"])
def test_all_rows_are_predicted_with_any_chunk_and_slice_size(database, run_batch, sizes):
    ids = register_rows(database, [ROW] * 23)
    run_batch(batch_chunk_size=sizes[0], batch_slice_size=sizes[1])
    assert [item.id for item in read(database, cruds.PREDICTED)] == ids


def test_invalid_rows_are_marked_once_and_others_are_predicted(database, run_batch, predictor):
    register_rows(database)
    write(database, "[1, 2, 3]", '"text"', "[5.1, 3.5, 1.4, 99]", "null")
    register_rows(database)
    log = run_batch(batch_chunk_size=3)
    logged = {line["item_id"]: line["reason"] for line in log if line["event"] == "item cannot be predicted"}
    failed = read(database, cruds.FAILED)
    assert {item.id: item.error for item in failed} == logged
    assert [json.loads(item.values) for item in failed] == [[1, 2, 3], "text", [5.1, 3.5, 1.4, 99], None]
    assert len(read(database, cruds.PREDICTED)) == 2
    assert read(database, cruds.UNPREDICTED) == []
    assert "found 0 unpredicted items" in events(run_batch())  # not tried again
    assert runs(database) == [(2, 4, True, predictor.version), (0, 0, True, predictor.version)]


def test_existing_predictions_are_not_overwritten(database, run_batch):
    ids = register_rows(database, [ROW] * 3)
    with database.transaction(write=True) as db:
        cruds.register_predictions(db, {ids[1]: '{"0": 1.0, "1": 0.0, "2": 0.0}'}, "by hand")
    run_batch()
    assert json.loads(read(database)[1].prediction or "") == {"0": 1, "1": 0, "2": 0}
    assert len(read(database, cruds.PREDICTED)) == 3


def test_json_null_counts_as_unpredicted(api, database, run_batch):
    ids = register_rows(database, [ROW] * 3)
    with database.transaction(write=True) as db:
        db.execute(text("UPDATE items SET prediction = 'null' WHERE id <= :id"), {"id": ids[1]})
        cruds.register_errors(db, {ids[1]: "an older fault"})
    assert [item["id"] for item in api.get("/data/unpredicted").json()] == [ids[0], ids[2]]
    assert [item["id"] for item in api.get("/data/failed").json()] == [ids[1]]
    run_batch()
    assert [item["id"] for item in api.get("/data/predicted").json()] == [ids[0], ids[2]]


def test_old_idempotency_keys_are_deleted(api, database, run_batch):
    requests = {key: {"json": {"values": ROW}, "headers": {"Idempotency-Key": key}} for key in ("old", "new")}
    first = {key: api.post("/data", **request).json()["id"] for key, request in requests.items()}
    with database.transaction(write=True) as db:
        old = db.get_one(IdempotencyKey, hashlib.sha256(b"old").hexdigest())
        old.created_datetime -= IDEMPOTENCY_KEY_LIFETIME + timedelta(minutes=1)
    run_batch()
    assert api.post("/data", **requests["new"]).json()["id"] == first["new"]
    assert api.post("/data", **requests["old"]).json()["id"] > first["new"]


def test_repredict_replaces_the_predictions_of_an_older_model(database, run_batch):
    ids = register_rows(database, [ROW] * 5)
    write(database, "[1, 2, 3]")
    invalid = read(database)[-1].id
    with database.transaction(write=True) as db:
        old = '{"0": 0.1, "1": 0.2, "2": 0.7}'
        cruds.register_predictions(db, {ids[0]: old, ids[1]: old, ids[2]: old, invalid: old}, "older")
        cruds.register_predictions(db, {ids[3]: old}, "oldest")
    assert "found 4 items of model older" in events(run_batch("older", batch_chunk_size=2))
    is_new = [json.loads(item.prediction)["0"] > 0.9 if item.prediction else None for item in read(database)]
    # A row that is invalid by now keeps its old prediction; an unpredicted one stays unpredicted.
    assert is_new == [True, True, True, False, None, False]
    assert read(database, cruds.FAILED) == []


def test_repredict_with_the_current_version_exits_with_1(models, tmp_path, predictor):
    system = BatchSystem(environment_of(models, f"sqlite:///{tmp_path}/items.db"))
    job = system.job("--no-wait", "--repredict", predictor.version)
    assert job.wait() == 1
    assert "current model" in job.log[-1]["reason"]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_wait_without_a_batch(models, tmp_path, signal_number):
    # The database is opened after the wait, so its kind makes no difference.
    job = BatchSystem(environment_of(models, f"sqlite:///{tmp_path}/items.db")).job(JOB_WAIT_SECONDS="1000")
    job.read_until("waiting for batch")
    job.process.send_signal(signal_number)
    assert job.wait() == 0
    assert len(job.log) == 1
    assert not (tmp_path / "items.db").exists()


def test_signal_ends_the_batch_after_the_current_chunk(database, system):
    register_rows(database, [ROW] * 10_000)
    job = system.job("--no-wait", BATCH_CHUNK_SIZE="50")
    job.read_until("starting inference")
    job.process.send_signal(signal.SIGTERM)
    assert job.wait() == 0
    assert "batch stopped early; the next run continues from here" in job.actions
    done = count(database, cruds.PREDICTED)
    assert done % 50 == 0
    assert done < 10_000
    assert runs(database)[0][:3] == (done, 0, True)


def test_killed_job_loses_nothing_and_the_next_one_continues(database, system, run_batch):
    register_rows(database, [ROW] * 10_000)
    job = system.job("--no-wait", BATCH_CHUNK_SIZE="50")
    job.read_until("starting inference")
    job.process.kill()
    assert job.wait() == -signal.SIGKILL
    # The rows and the run's count of them are stored in one transaction.
    [(done, errors, has_ended, _)] = runs(database)
    assert (count(database, cruds.PREDICTED), 0, False) == (done, errors, has_ended)
    assert done % 50 == 0
    run_batch()
    assert count(database, cruds.PREDICTED) == 10_000
    assert [run[0] for run in runs(database)] == [done, 10_000 - done]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("MODEL_FILEPATH", "/nowhere/iris_svc.onnx", "there is no model at"),
        ("LABEL_FILEPATH", "/nowhere/label.json", "there are no labels at"),
        ("DATABASE_URL", "mysql://root:secret@127.0.0.1:1/x", "does not answer"),
        ("DATABASE_URL", f"sqlite:///{__file__}", "cannot be used: file is not a database"),
        ("DATABASE_URL", f"sqlite:///{__file__}/items.db", "cannot be created"),
    ],
)
def test_missing_model_labels_or_database_exits_with_1(models, tmp_path, variable, value, reason):
    system = BatchSystem(environment_of(models, f"sqlite:///{tmp_path}/items.db"))
    job = system.job("--no-wait", DATABASE_WAIT_S="0", **{variable: value})
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


def test_metrics_are_written_and_pushed(database, run_batch, tmp_path):
    register_rows(database, [ROW] * 3)
    write(database, "[]")
    with pushgateway() as (url, pushed):
        run_batch(pushgateway_url=url, metrics_textfile=tmp_path / "batch.prom")
    [(path, content)] = pushed
    assert path.startswith("/metrics/job/batch_pattern/instance/")
    written = (tmp_path / "batch.prom").read_text()
    metrics = dict(line.split() for line in written.splitlines() if not line.startswith("#"))
    assert (float(metrics["batch_rows_predicted"]), float(metrics["batch_rows_failed"])) == (3, 1)
    assert float(metrics["batch_duration_seconds"]) > 0
    assert abs(float(metrics["batch_last_success_timestamp_seconds"]) - datetime.now(UTC).timestamp()) < 60
    assert content == written


@needs_promtool
def test_metrics_of_a_batch_follow_the_naming_rules(database, run_batch, tmp_path):
    run_batch(metrics_textfile=tmp_path / "batch.prom")
    page = (tmp_path / "batch.prom").read_text()
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[2] / "README.md") == []


@pytest.mark.parametrize("kind", ["connection refused", "not HTTP", "invalid URL"])
def test_failed_push_does_not_fail_the_batch(database, run_batch, kind):
    register_rows(database)
    with socket.create_server(("127.0.0.1", 0)) as other:
        not_http = f"http://127.0.0.1:{other.getsockname()[1]}"
        url = {"connection refused": "http://127.0.0.1:1", "not HTTP": not_http, "invalid URL": "http://host:port"}[
            kind
        ]

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"not HTTP\r\n")

        if kind == "not HTTP":
            threading.Thread(target=answer).start()
        log = run_batch(pushgateway_url=url)
    assert "metrics not published" in events(log)
    assert count(database, cruds.PREDICTED) == 1


def test_memory_of_the_job_does_not_grow_with_the_rows(database, system):
    """The peak after most of the rows is that after the first chunks."""
    register_rows(database, [ROW] * 60_000)
    job = system.job("--no-wait", BATCH_CHUNK_SIZE="1000")

    def peak_mb_after(predicted):
        wait_until(lambda: sum(run[0] for run in runs(database)) >= predicted)
        return peak_memory_mb(job.process.pid)

    early, late = peak_mb_after(5_000), peak_mb_after(50_000)
    assert job.wait() == 0
    assert late < 250
    assert late - early < 25
