"""Several jobs on one server, and a server that is killed."""

import json
import time
from collections import Counter

from sqlalchemy import text
from src.configurations import ApiSettings
from src.db import cruds
from src.db.database import open_database

from tests.conftest import environment_of
from tests.processes import Stack

ROW = [5.1, 3.5, 1.4, 0.2]


def register(database, count):
    with database.transaction() as db:
        return [item.id for item in cruds.register_items(db, [ROW] * count)]


def count(database, which):
    with database.transaction() as db:
        return cruds.count_items(db, which).count


def test_three_jobs_predict_each_row_once(models, mysql_url):
    stack = Stack(environment_of(models, mysql_url))
    with open_database(ApiSettings(database_url=mysql_url)) as database:
        with database.transaction() as db:
            db.execute(text("CREATE TABLE updates (item_id INT)"))
            trigger = "AFTER UPDATE ON items FOR EACH ROW INSERT INTO updates VALUES (NEW.id)"
            db.execute(text(f"CREATE TRIGGER count_updates {trigger}"))
        ids = register(database, 50_000)
        jobs = [stack.job("--no-wait", BATCH_CHUNK_SIZE="1000") for _ in range(3)]
        assert [job.wait() for job in jobs] == [0, 0, 0]
        with database.transaction() as db:
            updates = Counter(db.scalars(text("SELECT item_id FROM updates")))
            shares = list(db.scalars(text("SELECT predicted_rows FROM batch_runs")))
        assert updates == Counter(ids)
        assert sum(shares) == 50_000
        assert all(shares)


def test_a_killed_server_loses_nothing_and_all_recover(models, mortal_server):
    with mortal_server.database() as url:
        stack = Stack(environment_of(models, url) | {"DATABASE_TIMEOUT_S": "5"})
        with open_database(ApiSettings(database_url=url)) as database, stack.api() as api:
            register(database, 30_000)
            job = stack.job("--no-wait", BATCH_CHUNK_SIZE="200")
            job.read_until("starting inference")
            deadline = time.monotonic() + 60
            while count(database, cruds.PREDICTED) < 1000:
                assert time.monotonic() < deadline
            mortal_server.stop()
            assert job.wait() == 1
            assert job.log[-1]["action"] == "batch failed"
            for answer in (api.get("/health"), api.get("/data/all"), api.post("/data", json={"values": ROW})):
                assert answer.status_code == 503
                assert answer.json()["detail"] == "The database does not answer"
                assert answer.headers["Retry-After"]
            mortal_server.start()
            assert api.get("/health").json() == {"status": "ok"}
            done = count(database, cruds.PREDICTED)
            assert done % 200 == 0
            assert done + count(database, cruds.UNPREDICTED) == 30_000
            stack.run_job()
            assert count(database, cruds.PREDICTED) == 30_000
            predicted = api.get("/data/predicted", params={"limit": 30_000}).json()
            assert {json.dumps(item["prediction"]) for item in predicted} == {json.dumps(predicted[0]["prediction"])}


def test_a_job_waits_for_a_server_that_is_about_to_start(models, mortal_server):
    with mortal_server.database() as url:
        mortal_server.stop()
        job = Stack(environment_of(models, url)).job("--no-wait", DATABASE_WAIT_S="60")
        job.read_until("waiting for the database")
        mortal_server.start()
        assert job.wait() == 0


def test_registering_does_not_wait_for_the_end_of_a_batch_in_sqlite(models, tmp_path):
    url = f"sqlite:///{tmp_path}/items.db"
    stack = Stack(environment_of(models, url))
    with open_database(ApiSettings(database_url=url)) as database, stack.api() as api:
        register(database, 10_000)
        with database.transaction() as db:
            for _ in range(5):  # 320,000 rows
                db.execute(text("INSERT INTO items (`values`) SELECT `values` FROM items"))
        job = stack.job("--no-wait")
        job.read_until("starting inference")
        for _ in range(10):
            assert api.post("/data", json={"values": ROW}).status_code == 200
        assert count(database, cruds.UNPREDICTED) > 10
        assert job.wait() == 0


def test_registering_goes_on_while_jobs_work(models, mysql_url):
    stack = Stack(environment_of(models, mysql_url))
    with open_database(ApiSettings(database_url=mysql_url)) as database, stack.api() as api:
        register(database, 10_000)
        jobs = [stack.job("--no-wait", BATCH_CHUNK_SIZE="500") for _ in range(2)]
        registered = 0
        while count(database, cruds.PREDICTED) < 10_000:
            assert api.post("/data/list", json=[{"values": ROW}] * 100).status_code == 200
            registered += 100
        assert [job.wait() for job in jobs] == [0, 0]
        stack.run_job()
        assert count(database, cruds.PREDICTED) == 10_000 + registered
