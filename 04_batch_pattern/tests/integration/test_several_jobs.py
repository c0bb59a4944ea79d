"""Several jobs on one server, a server that is killed, and registering during a batch."""

import json
from collections import Counter

import pytest
from sqlalchemy import func, select, text

from serving_testing.processes import wait_until
from src.configurations import ApiSettings
from src.db import cruds
from src.db.database import SCHEMA_LOCK, Database, open_database
from tests.conftest import ROW, count, empty_database, environment_of, private_url, register_rows
from tests.processes import BatchSystem


@pytest.fixture
def system(models, mysql_url):
    return BatchSystem(environment_of(models, mysql_url))


@pytest.fixture
def database(mysql_url):
    with open_database(ApiSettings(database_url=mysql_url)) as database:
        yield database


def start_together(database: Database, system: BatchSystem, number_of_jobs: int, **variables: str):
    """Jobs that have all loaded the model before the first one claims rows: a lock holds them back until then."""
    with database.transaction() as db:
        db.execute(select(func.get_lock(SCHEMA_LOCK, 0)))
        jobs = [system.job("--no-wait", **variables) for _ in range(number_of_jobs)]
        waiting = text(
            "SELECT COUNT(*) FROM information_schema.processlist"
            " WHERE db = DATABASE() AND id <> CONNECTION_ID() AND info LIKE '%get_lock%'"
        )
        wait_until(lambda: db.scalar(waiting) == number_of_jobs)
        db.execute(text("DO RELEASE_LOCK(:name)"), {"name": SCHEMA_LOCK})
    return jobs


def test_three_jobs_predict_each_row_once(database, system):
    with database.transaction() as db:
        db.execute(text("CREATE TABLE updates (item_id INT)"))
        trigger = "AFTER UPDATE ON items FOR EACH ROW INSERT INTO updates VALUES (NEW.id)"
        db.execute(text(f"CREATE TRIGGER count_updates {trigger}"))
    ids = register_rows(database, [ROW] * 20_000)
    jobs = start_together(database, system, 3, BATCH_CHUNK_SIZE="500")
    assert [job.wait() for job in jobs] == [0, 0, 0]
    with database.transaction() as db:
        updates = Counter(db.scalars(text("SELECT item_id FROM updates")))
        shares = list(db.scalars(text("SELECT predicted_rows FROM batch_runs")))
    assert updates == Counter(ids)
    assert sum(shares) == 20_000
    assert all(shares)


def test_killed_server_loses_nothing_and_api_and_job_recover(models, killable_server):
    with empty_database(private_url(killable_server)) as url:
        system = BatchSystem(environment_of(models, url) | {"DATABASE_TIMEOUT_S": "5"})
        with open_database(ApiSettings(database_url=url)) as database, system.api() as (api, _):
            register_rows(database, [ROW] * 10_000)
            job = system.job("--no-wait", BATCH_CHUNK_SIZE="100")
            wait_until(lambda: count(database, cruds.PREDICTED) >= 1000)
            killable_server.stop()
            assert job.wait() == 1
            assert job.log[-1]["action"] == "batch failed"
            for answer in (api.get("/health"), api.get("/data/all"), api.post("/data", json={"values": ROW})):
                assert answer.status_code == 503
                assert answer.json()["detail"] == "The database does not answer"
                assert answer.headers["Retry-After"]
            killable_server.start()
            assert api.get("/health").json() == {"status": "ok"}
            done = count(database, cruds.PREDICTED)
            assert done % 100 == 0
            assert done + count(database, cruds.UNPREDICTED) == 10_000
            system.run_job()
            assert count(database, cruds.PREDICTED) == 10_000
            predicted = api.get("/data/predicted", params={"limit": 10_000}).json()
            assert {json.dumps(item["prediction"]) for item in predicted} == {json.dumps(predicted[0]["prediction"])}


def test_job_waits_for_a_server_that_starts_later(models, killable_server):
    with empty_database(private_url(killable_server)) as url:
        killable_server.stop()
        job = BatchSystem(environment_of(models, url)).job("--no-wait", DATABASE_WAIT_S="60")
        job.read_until("waiting for the database")
        killable_server.start()
        assert job.wait() == 0


def test_registering_in_sqlite_does_not_wait_for_the_end_of_a_batch(models, tmp_path):
    url = f"sqlite:///{tmp_path}/items.db"
    system = BatchSystem(environment_of(models, url))
    with open_database(ApiSettings(database_url=url)) as database, system.api() as (api, _):
        register_rows(database, [ROW] * 10_000)
        with database.transaction(write=True) as db:
            for _ in range(5):  # 320,000 rows
                db.execute(text("INSERT INTO items (`values`) SELECT `values` FROM items"))
        job = system.job("--no-wait")
        job.read_until("starting inference")
        for _ in range(10):
            assert api.post("/data", json={"values": ROW}).status_code == 200
        job.process.terminate()
        assert job.wait() == 0
        assert count(database, cruds.UNPREDICTED) > 10


def test_registering_succeeds_while_jobs_run(database, system):
    with system.api() as (api, _):
        register_rows(database, [ROW] * 10_000)
        jobs = start_together(database, system, 2, BATCH_CHUNK_SIZE="500")
        registered = 0
        while count(database, cruds.PREDICTED) < 10_000:
            assert api.post("/data/list", json=[{"values": ROW}] * 100).status_code == 200
            registered += 100
        assert [job.wait() for job in jobs] == [0, 0]
        system.run_job()
        assert count(database, cruds.PREDICTED) == 10_000 + registered
