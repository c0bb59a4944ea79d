"""Tables and SQL on SQLite and on a MySQL or MariaDB server."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event, text
from src.configurations import ApiSettings
from src.constants import INSERT_PAGE_ROWS
from src.db import cruds
from src.db.database import LostToAnother, open_database

from serving_common.errors import StartupError

ROW = [5.1, 3.5, 1.4, 0.2]
PREDICTION = '{"0": 0.9, "1": 0.06, "2": 0.04}'


def register(database, count=1):
    with database.transaction() as db:
        return [item.id for item in cruds.register_items(db, [ROW] * count)]


def predict(database, ids, version="v1"):
    with database.transaction(locks=True) as db:
        cruds.register_predictions(db, dict.fromkeys(ids, PREDICTION), version)


def ids_of(database, which):
    with database.transaction() as db:
        return [item.id for item in cruds.select_items(db, which, 0, 100_000)]


def scalar(database, statement, **parameters):
    with database.transaction() as db:
        return db.execute(text(statement), parameters).scalar()


def test_what_is_not_predicted_is_sql_null(database):
    [item_id] = register(database)
    assert scalar(database, "SELECT COUNT(*) FROM items WHERE prediction IS NULL") == 1
    assert scalar(database, "SELECT is_predicted FROM items WHERE id = :id", id=item_id) == 0
    predict(database, [item_id])
    assert scalar(database, "SELECT COUNT(*) FROM items WHERE prediction IS NULL") == 0
    assert scalar(database, "SELECT is_predicted FROM items WHERE id = :id", id=item_id) == 1
    stored = scalar(database, "SELECT JSON_EXTRACT(prediction, '$.\"0\"') FROM items")
    assert float(stored) == 0.9


def test_every_row_is_in_one_list(database):
    first, second, third, fourth = register(database, 4)
    with database.transaction() as db:
        cruds.register_errors(db, {third: "x" * 1000, fourth: "until somebody stores a prediction by hand"})
    predict(database, [second, fourth])
    assert ids_of(database, cruds.ALL) == [first, second, third, fourth]
    assert ids_of(database, cruds.UNPREDICTED) == [first]
    assert ids_of(database, cruds.PREDICTED) == [second, fourth]
    assert ids_of(database, cruds.FAILED) == [third]


@pytest.mark.parametrize("which", [cruds.UNPREDICTED, cruds.PREDICTED, cruds.FAILED])
def test_lists_read_the_index_and_sort_nothing(database, database_url, which):
    predict(database, register(database, 2000)[:1000])
    sqlite = database_url.startswith("sqlite")
    with database.transaction() as db:
        explain = "EXPLAIN QUERY PLAN" if sqlite else "EXPLAIN FORMAT=JSON"
        connection = db.connection()
        asked = []
        event.listen(connection, "before_cursor_execute", lambda *call: asked.append(call[2:4]))
        cruds.select_items(db, which, 5, 100)
        cruds.claim_items(db, which, 5, 5000, 100)
        plans = [connection.exec_driver_sql(f"{explain} {query}", values).all() for query, values in asked[:2]]
    assert len(plans) == 2
    for rows in plans:
        plan = str([tuple(row) for row in rows])
        assert "ix_items_state" in plan
        assert "filesort" not in plan
        assert "TEMP B-TREE" not in plan


def test_ids_ascend_in_the_order_of_the_rows(database):
    count = 2 * INSERT_PAGE_ROWS + 3
    rows = [[1 + number / 1000, 1.0, 1.0, 1.0] for number in range(count)]
    with database.transaction() as db:
        stored = cruds.register_items(db, rows)
    ids = [item.id for item in stored]
    assert ids == sorted(set(ids))
    with database.transaction() as db:
        read = cruds.select_items(db, cruds.ALL, 0, count)
    assert [item.id for item in read] == ids
    assert [json.loads(item.values) for item in read] == rows
    assert [item.created_datetime for item in read] == [item.created_datetime for item in stored]


def test_ids_belong_to_their_rows_while_others_register_too(database):
    def register_many(number):
        with database.transaction() as db:
            return [item.id for item in cruds.register_items(db, [[number, 1.0, 1.0, 1.0]] * 1500)]

    with ThreadPoolExecutor(4) as executor:
        given = list(executor.map(register_many, range(1, 9)))
    with database.transaction() as db:
        stored = {item.id: json.loads(item.values)[0] for item in cruds.select_items(db, cruds.ALL, 0, 20_000)}
    assert len(stored) == 8 * 1500
    for number, ids in enumerate(given, start=1):
        assert {stored[item_id] for item_id in ids} == {number}


def test_a_transaction_that_fails_leaves_nothing(database):
    class Failure(Exception):
        pass

    with pytest.raises(Failure), database.transaction() as db:  # noqa: PT012 - the transaction is what is tested
        cruds.register_items(db, [ROW] * (INSERT_PAGE_ROWS + 1))
        raise Failure
    assert ids_of(database, cruds.ALL) == []


def test_predictions_are_stored_for_the_claimed_rows_only(database):
    first, second, third = register(database, 3)
    predict(database, [first], "v1")
    predict(database, [third], "v2")
    assert ids_of(database, cruds.UNPREDICTED) == [second]
    assert ids_of(database, cruds.predicted_by("v1")) == [first]
    assert ids_of(database, cruds.predicted_by("v2")) == [third]
    with database.transaction() as db:
        assert cruds.count_items(db, cruds.PREDICTED) == cruds.Found(2, first, third)
        assert cruds.count_items(db, cruds.FAILED) == cruds.Found(0, 0, 0)


def test_claimed_rows_are_passed_over(mysql_url):
    with open_database(ApiSettings(database_url=mysql_url)) as database:
        ids = register(database, 10)
        with database.transaction() as one, database.transaction() as other:
            claimed = [cruds.claim_items(db, cruds.UNPREDICTED, 0, ids[-1], 4) for db in (one, other, other)]
            with database.transaction() as third:
                claimed.append(cruds.claim_items(third, cruds.UNPREDICTED, 0, ids[-1], 100))
        assert [[item.id for item in rows] for rows in claimed] == [ids[:4], ids[4:8], ids[4:8], ids[8:]]


def test_sqlite_lets_one_claim_at_a_time(tmp_path):
    with open_database(ApiSettings(database_url=f"sqlite:///{tmp_path}/items.db", database_timeout_s=1)) as database:
        register(database)
        with database.transaction(locks=True):
            assert len(ids_of(database, cruds.ALL)) == 1  # readers go on
            with pytest.raises(LostToAnother), database.transaction(locks=True):
                pass


def test_a_deadlock_is_told_from_a_database_that_is_away(mysql_url):
    with open_database(ApiSettings(database_url=mysql_url)) as database, ThreadPoolExecutor(1) as executor:
        first, second = register(database, 2)
        lock = text("SELECT id FROM items WHERE id = :id FOR UPDATE")

        def cross(mine, theirs, ready=None):
            try:
                with database.transaction() as db:
                    db.execute(lock, {"id": mine})
                    other = executor.submit(cross, theirs, mine) if ready else None
                    if ready:
                        ready()
                    db.execute(lock, {"id": theirs})
            except LostToAnother:
                return ["lost", *(other.result() if ready and other else [])]
            return ["won", *(other.result() if ready and other else [])]

        def second_is_locked():
            statement = "SELECT id FROM items WHERE id = :id FOR UPDATE SKIP LOCKED"
            while scalar(database, statement, id=second) is not None:
                pass

        assert sorted(cross(first, second, second_is_locked)) == ["lost", "won"]


def test_api_and_three_jobs_may_make_the_tables_at_once(settings):
    barrier = threading.Barrier(4)

    def start(_):
        barrier.wait()
        with open_database(settings) as database:
            return register(database)

    with ThreadPoolExecutor(4) as executor:
        assert sorted(executor.map(start, range(4))) == [[1], [2], [3], [4]]


def test_times_are_utc_whoever_writes_them(database):
    with database.transaction() as db:
        db.execute(text("INSERT INTO items (`values`) VALUES ('[1, 2, 3, 4]')"))
        cruds.register_items(db, [ROW])
        other, ours = cruds.select_items(db, cruds.ALL, 0, 2)
    assert abs((other.created_datetime - ours.created_datetime).total_seconds()) <= 1


def test_another_table_of_this_name_stops_the_start(settings, database):
    with database.transaction() as db:
        db.execute(text("DROP TABLE batch_runs"))
        db.execute(text("CREATE TABLE batch_runs (id INTEGER PRIMARY KEY)"))
    wanted = "batch_runs is another one: it has no column started_datetime"
    with pytest.raises(StartupError, match=wanted), open_database(settings):
        pass


def test_no_database_stops_the_start():
    settings = ApiSettings(database_url="mysql://root:secret@127.0.0.1:1/x", database_wait_s=0)
    with pytest.raises(StartupError, match="does not answer") as caught, open_database(settings):
        pass
    assert "secret" not in str(caught.value)
