"""Tables and SQL on SQLite and on a MySQL or MariaDB server."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event, text

from serving_common.errors import StartupError
from src.configurations import ApiSettings
from src.constants import INSERT_PAGE_ROWS
from src.db import cruds, migrate
from src.db.database import open_database, open_for_probes
from src.db.failures import TransactionConflict
from tests.conftest import ROW, read, register_rows, write

PREDICTION = '{"0": 0.9, "1": 0.06, "2": 0.04}'


def predict(database, ids, version="v1"):
    with database.transaction(write=True) as db:
        cruds.register_predictions(db, dict.fromkeys(ids, PREDICTION), version)


def ids_of(database, row_filter):
    return [item.id for item in read(database, row_filter)]


def scalar(database, statement, **parameters):
    with database.transaction() as db:
        return db.execute(text(statement), parameters).scalar()


def test_unpredicted_is_sql_null(database):
    [item_id] = register_rows(database)
    assert scalar(database, "SELECT COUNT(*) FROM items WHERE prediction IS NULL") == 1
    assert scalar(database, "SELECT is_predicted FROM items WHERE id = :id", id=item_id) == 0
    predict(database, [item_id])
    assert scalar(database, "SELECT COUNT(*) FROM items WHERE prediction IS NULL") == 0
    assert scalar(database, "SELECT is_predicted FROM items WHERE id = :id", id=item_id) == 1
    stored = scalar(database, "SELECT JSON_EXTRACT(prediction, '$.\"0\"') FROM items")
    assert float(stored) == 0.9


def test_every_row_is_in_exactly_one_list(database):
    first, second, third, fourth = register_rows(database, [ROW] * 4)
    with database.transaction() as db:
        cruds.register_errors(db, {third: "x" * 1000, fourth: "until a prediction is stored by hand"})
    predict(database, [second, fourth])
    assert ids_of(database, cruds.ALL) == [first, second, third, fourth]
    assert ids_of(database, cruds.UNPREDICTED) == [first]
    assert ids_of(database, cruds.PREDICTED) == [second, fourth]
    assert ids_of(database, cruds.FAILED) == [third]


@pytest.mark.parametrize("row_filter", [cruds.UNPREDICTED, cruds.PREDICTED, cruds.FAILED])
def test_lists_use_the_index_without_sorting(database, settings, row_filter):
    predict(database, register_rows(database, [ROW] * 2000)[:1000])
    is_sqlite = settings.url.get_backend_name() == "sqlite"
    with database.transaction() as db:
        explain = "EXPLAIN QUERY PLAN" if is_sqlite else "EXPLAIN FORMAT=JSON"
        connection = db.connection()
        queries = []
        event.listen(connection, "before_cursor_execute", lambda *arguments: queries.append(arguments[2:4]))
        cruds.select_items(db, row_filter, 5, 100)
        cruds.claim_items(db, row_filter, 5, 5000, 100)
        plans = [connection.exec_driver_sql(f"{explain} {query}", values).all() for query, values in queries[:2]]
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
    items = read(database)
    assert [item.id for item in items] == ids
    assert [json.loads(item.values) for item in items] == rows
    assert [item.created_datetime for item in items] == [item.created_datetime for item in stored]


def test_ids_match_their_rows_under_concurrent_registration(database):
    with ThreadPoolExecutor(4) as executor:
        rows = [[[number, 1.0, 1.0, 1.0]] * 1500 for number in range(1, 9)]
        returned = list(executor.map(partial(register_rows, database), rows))
    stored = {item.id: json.loads(item.values)[0] for item in read(database)}
    assert len(stored) == 8 * 1500
    for number, ids in enumerate(returned, start=1):
        assert {stored[item_id] for item_id in ids} == {number}


def test_failed_transaction_stores_nothing(database):
    class Failure(Exception):
        pass

    with pytest.raises(Failure), database.transaction() as db:  # noqa: PT012 - the transaction is what is tested
        cruds.register_items(db, [ROW] * (INSERT_PAGE_ROWS + 1))
        raise Failure
    assert ids_of(database, cruds.ALL) == []


def test_predictions_are_stored_with_their_model_version(database):
    first, second, third = register_rows(database, [ROW] * 3)
    predict(database, [first], "v1")
    predict(database, [third], "v2")
    assert ids_of(database, cruds.UNPREDICTED) == [second]
    assert ids_of(database, cruds.predicted_by("v1")) == [first]
    assert ids_of(database, cruds.predicted_by("v2")) == [third]
    with database.transaction() as db:
        assert cruds.count_items(db, cruds.PREDICTED) == cruds.RowRange(2, first, third)
        assert cruds.count_items(db, cruds.FAILED) == cruds.RowRange(0, 0, 0)


def test_claimed_rows_are_skipped_by_other_transactions(mysql_url):
    with open_database(ApiSettings(database_url=mysql_url)) as database:
        ids = register_rows(database, [ROW] * 10)
        with database.transaction() as one, database.transaction() as other:
            claimed = [cruds.claim_items(db, cruds.UNPREDICTED, 0, ids[-1], 4) for db in (one, other, other)]
            with database.transaction() as third:
                claimed.append(cruds.claim_items(third, cruds.UNPREDICTED, 0, ids[-1], 100))
        assert [[item.id for item in rows] for rows in claimed] == [ids[:4], ids[4:8], ids[4:8], ids[8:]]


def test_sqlite_allows_one_writer_and_raises_a_conflict_after_the_timeout(tmp_path):
    with open_database(ApiSettings(database_url=f"sqlite:///{tmp_path}/items.db", database_timeout_s=1)) as database:
        register_rows(database)
        with database.transaction(write=True):
            assert len(ids_of(database, cruds.ALL)) == 1  # readers are not blocked
            with pytest.raises(TransactionConflict), database.transaction(write=True):
                pass


def test_deadlock_raises_a_conflict_in_one_transaction(mysql_url):
    with open_database(ApiSettings(database_url=mysql_url)) as database, ThreadPoolExecutor(2) as executor:
        ids = register_rows(database, [ROW] * 2)
        has_one_lock = threading.Barrier(2)

        def lock_both(first, second):
            try:
                with database.transaction() as db:
                    db.execute(text("SELECT id FROM items WHERE id = :id FOR UPDATE"), {"id": first})
                    has_one_lock.wait()
                    db.execute(text("SELECT id FROM items WHERE id = :id FOR UPDATE"), {"id": second})
            except TransactionConflict:
                return "conflict"
            return "committed"

        assert sorted(executor.map(lock_both, ids, reversed(ids))) == ["committed", "conflict"]


def test_concurrent_starts_create_the_tables_once(fresh_settings):
    barrier = threading.Barrier(4)

    def start(_):
        barrier.wait()
        with open_database(fresh_settings) as database:
            return register_rows(database)

    with ThreadPoolExecutor(4) as executor:
        assert sorted(executor.map(start, range(4))) == [[1], [2], [3], [4]]


@pytest.mark.parametrize(("reachable", "code"), [(True, 0), (False, 1)])
def test_migrate_creates_the_tables_and_reports_a_failure(fresh_settings, monkeypatch, reachable, code):
    url = fresh_settings.database_url.get_secret_value() if reachable else "mysql://root:secret@127.0.0.1:1/x"
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("DATABASE_WAIT_S", "0")
    assert migrate.main() == code
    if reachable:
        assert migrate.main() == 0
        # Which creates nothing.
        with closing(open_for_probes(fresh_settings, timeout_s=5)) as database, database.transaction() as db:
            assert db.execute(text("SELECT COUNT(*) FROM items")).scalar() == 0


def test_default_timestamp_is_utc(database):
    write(database, "[1, 2, 3, 4]")
    register_rows(database)
    default, ours = read(database)
    assert abs((default.created_datetime - ours.created_datetime).total_seconds()) <= 1


def test_table_with_another_schema_raises_startup_error(fresh_settings):
    with open_database(fresh_settings) as database, database.transaction() as db:
        db.execute(text("DROP TABLE batch_runs"))
        db.execute(text("CREATE TABLE batch_runs (id INTEGER PRIMARY KEY)"))
    reason = "batch_runs has another schema: no column started_datetime"
    with pytest.raises(StartupError, match=reason), open_database(fresh_settings):
        pass


def test_unreachable_database_raises_startup_error_without_the_password():
    settings = ApiSettings(database_url="mysql://root:secret@127.0.0.1:1/x", database_wait_s=0)
    with pytest.raises(StartupError, match="does not answer") as caught, open_database(settings):
        pass
    assert "secret" not in str(caught.value)


@given(st.lists(st.integers(1, 50), unique=True).map(sorted))
def test_id_ranges_hold_all_ids(ids):
    assert [item_id for some in cruds._ranges(ids) for item_id in some] == ids


@pytest.mark.parametrize("step", [1, 3])
def test_equally_distant_ids_are_one_range(step):
    assert cruds._ranges(range(7, 70_000, step)) == [range(7, 70_000, step)]
