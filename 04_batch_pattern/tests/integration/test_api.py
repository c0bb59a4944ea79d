"""The API over HTTP, on SQLite and on a MySQL or MariaDB server."""

import asyncio
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from serving_common.tasks import cancel_and_wait
from serving_testing.processes import free_port, wait_until
from serving_testing.promtool import naming_problems, needs_promtool, undocumented
from src.api import metrics
from src.constants import INSERT_PAGE_ROWS, READ_PAGE_ROWS
from src.db import cruds
from src.db.database import open_database
from tests.conftest import ROW, register_rows, serving, settings_of, write
from tests.processes import peak_memory_mb

OUT_OF_RANGE = "must be a number greater than 0.0 and less than 10.0"


def test_register_one_and_get_it(api):
    registered = api.post("/data", json={"values": ROW, "unknown": "ignored"})
    assert registered.status_code == 200
    item = registered.json()
    assert item.keys() == {"id", "values", "prediction", "created_datetime"}
    assert (item["values"], item["prediction"]) == (ROW, None)
    assert len(item["created_datetime"]) == len("2025-11-13T10:00:00")
    assert api.get(f"/data/{item['id']}").json() == item
    assert api.get("/data/unpredicted").json() == api.get("/data/all").json() == [item]
    assert api.get("/data/predicted").json() == api.get("/data/failed").json() == []


@pytest.mark.parametrize("wrap", [lambda items: items, lambda items: {"items": items}], ids=["list", "items"])
def test_register_many_returns_them_in_order(api, wrap):
    number_of_items = 2 * INSERT_PAGE_ROWS + 3
    items = [{"values": [5.1, 3.5, 1.4, 0.2 + number / 10_000]} for number in range(number_of_items)]
    registered = api.post("/data/list", json=wrap(items))
    assert registered.status_code == 200
    stored = registered.json()
    assert [item["values"] for item in stored] == [item["values"] for item in items]
    ids = [item["id"] for item in stored]
    assert ids == sorted(set(ids))
    assert api.get("/data/all").json() == stored


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/data", {}, {"field": "values", "reason": "is missing"}),
        ("/data", {"values": None}, {"field": "values", "reason": "must be a valid list"}),
        ("/data", {"values": []}, {"field": "values"}),
        ("/data", {"values": [1, 2, 3]}, {"field": "values"}),
        ("/data", {"values": [1, 2, 3, 4, 5]}, {"field": "values"}),
        ("/data", {"values": ["5.1", 3.5, 1.4, 0.2]}, {"field": "sepal_length", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [5.1, True, 1.4, 0.2]}, {"field": "sepal_width", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [5.1, 3.5, None, 0.2]}, {"field": "petal_length", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [5.1, 3.5, 1.4, 0.0]}, {"field": "petal_width", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [5.1, 3.5, 1.4, 10.0]}, {"field": "petal_width", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [5.1, 3.5, 1.4, -1]}, {"field": "petal_width", "reason": OUT_OF_RANGE}),
        ("/data", {"values": [ROW]}, {"field": "sepal_length", "reason": OUT_OF_RANGE}),
        ("/data", [], {"field": "body"}),
        ("/data", "text", {"field": "body"}),
        ("/data/list", [], {"field": "body"}),
        ("/data/list", {"items": []}, {"field": "body"}),
        ("/data/list", {}, {"field": "body"}),
        ("/data/list", None, {"field": "body"}),
        ("/data/list", [{"values": ROW}, {"values": [1, 2, 3]}], {"row": 1, "field": "values"}),
        (
            "/data/list",
            {"items": [{"values": ROW}, {"values": [1, 2, 3, 99]}]},
            {"row": 1, "field": "petal_width", "reason": OUT_OF_RANGE},
        ),
    ],
)
def test_invalid_input_returns_400_and_stores_nothing(api, path, body, error):
    answer = api.post(path, json=body)
    assert answer.status_code == 400
    problem = answer.json()
    assert problem["detail"] == "Invalid data format"
    assert error.items() <= problem["errors"][0].items()
    assert problem["request_id"] == answer.headers["X-Request-ID"]
    assert api.get("/data/all").json() == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff", b'{"values": [NaN, 1, 1, 1]}', b'{"values": [1e999, 1, 1, 1]}', b"[" * 100_000]
)
def test_malformed_json_returns_400(api, body):
    answer = api.post("/data", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "Invalid data format"


@pytest.mark.parametrize("path", ["/data", "/data/list"])
def test_missing_content_type_returns_400_with_a_hint(api, path):
    answer = api.post(path, content=b'{"values": [5.1, 3.5, 1.4, 0.2]}')
    assert answer.status_code == 400
    [error] = answer.json()["errors"]
    assert error["field"] == "body"
    assert error["reason"].endswith("sent with Content-Type: application/json")


@pytest.mark.parametrize("item_id", ["0", "-1", "1", "2147483648", "9223372036854775808", "9" * 100])
def test_unknown_id_returns_404(api, item_id):
    answer = api.get(f"/data/{item_id}")
    assert answer.status_code == 404
    assert answer.json()["detail"] == "Item not found"


@pytest.mark.parametrize(
    "path",
    [
        "/data/abc",
        "/data/1.5",
        "/data/1e3",
        "/data/1.0",
        "/data/1_0",
        "/data/+1",
        "/data/%201",
        "/data/" + "9" * 5000,
        "/data/all?limit=0",
        "/data/all?limit=x",
        "/data/all?limit=1.0",
        "/data/predicted?after_id=-1",
        "/data/unpredicted?after_id=2147483648",
    ],
)
def test_invalid_id_or_page_returns_400(api, path):
    answer = api.get(path)
    assert answer.status_code == 400
    assert answer.json()["detail"] == "Invalid data format"


def test_lists_are_complete_across_pages(api, database):
    ids = register_rows(database, [ROW] * (2 * READ_PAGE_ROWS + 1))
    assert [item["id"] for item in api.get("/data/all").json()] == ids
    exactly_two_pages = api.get("/data/all", params={"limit": 2 * READ_PAGE_ROWS}).json()
    assert [item["id"] for item in exactly_two_pages] == ids[:-1]
    rest = api.get("/data/all", params={"after_id": ids[-3], "limit": 10}).json()
    assert [item["id"] for item in rest] == ids[-2:]


def test_rows_of_other_programs_are_returned_unchanged(api, database):
    with database.transaction() as db:
        for values in ("[1, 2, 3]", '"text"', "null", '{"a": [true]}', "5", "0.5"):
            statement = "INSERT INTO items (`values`, prediction, created_datetime) VALUES (:values, '1', :created)"
            db.execute(text(statement), {"values": values, "created": "2025-11-13 10:00:00.250000"})
    items = api.get("/data/all").json()
    assert [item["values"] for item in items] == [[1, 2, 3], "text", None, {"a": [True]}, 5, 0.5]
    assert {(item["prediction"], item["created_datetime"]) for item in items} == {(1, "2025-11-13T10:00:00")}
    assert [api.get(f"/data/{item['id']}").json() for item in items] == items


def test_failed_rows_include_the_reason(api, database):
    item = api.post("/data", json={"values": ROW}).json()
    with database.transaction() as db:
        cruds.register_errors(db, {item["id"]: "the reason"})
    failed = {**item, "error": "the reason"}
    assert api.get("/data/failed").json() == api.get("/data/all").json() == [failed]
    assert api.get(f"/data/{item['id']}").json() == failed
    assert api.get("/data/unpredicted").json() == []


def test_metadata_and_health(api):
    assert api.get("/health").json() == {"status": "ok"}
    metadata = api.get("/metadata").json()
    assert metadata["name"] == "iris_svc"
    assert metadata["labels"] == {"0": "setosa", "1": "versicolor", "2": "virginica"}
    assert metadata["outputs"][-1]["shape"] == ["N", 3]


def test_missing_table_is_named_until_it_is_back(fresh_settings):
    with serving(fresh_settings) as api, open_database(fresh_settings) as database:
        with database.transaction() as db:
            db.execute(text("ALTER TABLE items RENAME TO moved"))
        for answer in (api.get("/data/all"), api.get("/data/1"), api.post("/data", json={"values": ROW})):
            assert answer.status_code == 503
            assert "Retry-After" not in answer.headers
            assert re.search("no such table: items|table of the database is missing", answer.json()["detail"])
        with database.transaction() as db:
            db.execute(text("ALTER TABLE moved RENAME TO items"))
        assert api.get("/data/all").json() == []


def test_error_in_the_middle_of_a_list_breaks_the_connection(fresh_settings):
    with serving(fresh_settings) as api, open_database(fresh_settings) as database:
        write(database, *[f'"{"x" * 4_000}"'] * 40)
        with database.transaction() as db:
            for _ in range(8):  # 10,240 rows, 40 MB: more than the sockets' buffers hold, so the last pages wait
                db.execute(text("INSERT INTO items (`values`) SELECT `values` FROM items"))
        with api.stream("GET", "/data/all") as answer:
            assert answer.status_code == 200
            parts = answer.iter_bytes()
            assert next(parts).startswith(b'[{"id":1,')
            with database.transaction() as db:
                db.execute(text("ALTER TABLE items RENAME TO moved"))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                for _ in parts:
                    pass


def test_memory_for_a_long_list_is_a_small_multiple_of_its_size(database, system):
    body = b"[" + b",".join([b'{"values":[1,1,1,1]}'] * 50_000) + b"]"
    with system.api() as (api, pid):
        before = peak_memory_mb(pid)
        answer = api.post("/data/list", content=body, headers={"Content-Type": "application/json"})
        assert len(answer.json()) == 50_000
        assert peak_memory_mb(pid) - before < 100


def test_large_body_returns_413(settings):
    with serving(settings.model_copy(update={"max_body_bytes": 100})) as api:
        answer = api.post("/data/list", json=[{"values": ROW}] * 10)
        assert answer.status_code == 413
        assert api.post("/data", json={"values": ROW}).status_code == 200


def test_api_key_is_required_for_data_only(database, settings):
    with serving(settings.model_copy(update={"api_key": SecretStr("secret")})) as api:
        assert api.get("/data/all").status_code == 401
        assert api.post("/data", json={"values": ROW}).status_code == 401
        assert api.get("/data/all", headers={"X-API-Key": "secret"}).json() == []
        assert api.get("/health").status_code == 200


def metrics_with(api: httpx.Client, line: str) -> dict[str, float]:
    """The series without labels of the first page that has this line."""
    page = ""

    def has_line() -> bool:
        nonlocal page
        page = api.get("/metrics").text
        return f"\n{line}\n" in page

    wait_until(has_line)
    series = re.findall(r"^(\w+) (\S+)$", page, re.MULTILINE)
    return {name: float(value) for name, value in series}


def test_metrics_report_what_waits_for_the_job(database, run_batch, settings):
    register_rows(database, [ROW] * 3)
    with serving(settings) as api:
        found = metrics_with(api, "rows_waiting 3.0")
    assert 0 <= found["rows_oldest_waiting_age_seconds"] < 60
    assert "batch_last_end_timestamp_seconds" not in found
    run_batch()
    with serving(settings) as api:
        found = metrics_with(api, "rows_waiting 0.0")
    assert found["rows_oldest_waiting_age_seconds"] == 0
    assert abs(found["batch_last_end_timestamp_seconds"] - time.time()) < 60


def test_metrics_of_the_backlog_are_absent_while_the_database_cannot_be_asked(models):
    nobody_listens = f"mysql+pymysql://root@127.0.0.1:{free_port()}/items"
    collector = metrics.BacklogCollector()
    collector.backlog = cruds.Backlog(1, None, None)
    assert len(list(collector.collect())) == 2

    async def watch_until_absent() -> None:
        watching = asyncio.create_task(metrics.watch(settings_of(models, nobody_listens), collector))
        while collector.backlog is not None:  # noqa: ASYNC110 - set by the task
            await asyncio.sleep(0.01)
        await cancel_and_wait(watching)

    asyncio.run(watch_until_absent())
    assert list(collector.collect()) == []


@needs_promtool
def test_metrics_follow_the_naming_rules(api):
    api.post("/data", json={"values": ROW})
    page = api.get("/metrics").text
    assert naming_problems(page) == []
    assert undocumented(page, Path(__file__).parents[2] / "README.md") == []


def test_requests_are_counted_by_route(api):
    item = api.post("/data", json={"values": ROW}).json()
    api.get(f"/data/{item['id']}")
    assert 'route="/data/{id}"' in api.get("/metrics").text


@pytest.mark.parametrize(
    ("path", "body"), [("/data", {"values": ROW}), ("/data/list", [{"values": ROW}] * (INSERT_PAGE_ROWS + 1))]
)
def test_same_idempotency_key_and_body_return_the_first_answer(api, path, body):
    first = api.post(path, json=body, headers={"Idempotency-Key": "order 4711"})
    api.post("/data", json={"values": ROW})
    again = api.post(path, json=body, headers={"Idempotency-Key": "order 4711"})
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    number_of_items = len(body) if isinstance(body, list) else 1
    assert len(api.get("/data/all").json()) == number_of_items + 1
    other = api.post(path, json=body, headers={"Idempotency-Key": "order 4712"})
    assert other.json() != first.json()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/data", {"values": [5.0, 3.5, 1.4, 0.2]}),
        ("/data/list", [{"values": ROW}]),
        ("/data", {"values": [*ROW, 1]}),
    ],
    ids=["another body", "another endpoint", "an invalid body"],
)
def test_idempotency_key_of_another_request_returns_400(api, path, body):
    headers = {"Idempotency-Key": "order 4711"}
    item = api.post("/data", json={"values": ROW}, headers=headers).json()
    answer = api.post(path, json=body, headers=headers)
    assert (answer.status_code, answer.json()["detail"]) == (400, "Invalid data format")
    assert answer.json()["errors"][0]["field"] in ("Idempotency-Key", "values")
    assert api.get("/data/all").json() == [item]


def test_idempotency_key_of_invalid_length_returns_400(api):
    for key in ("", "x" * 256):
        answer = api.post("/data", json={"values": ROW}, headers={"Idempotency-Key": key})
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["field"] == "idempotency-key"


def test_simultaneous_requests_with_one_idempotency_key_store_one_item(api):
    barrier = threading.Barrier(8)

    def post_once(_):
        barrier.wait()
        return api.post("/data", json={"values": ROW}, headers={"Idempotency-Key": "order 4711"})

    for _ in range(3):
        with ThreadPoolExecutor(8) as executor:
            answers = list(executor.map(post_once, range(8)))
        assert {answer.status_code for answer in answers} <= {200, 503}
        items = api.get("/data/all").json()
        assert len(items) == 1
        assert all(answer.json() == items[0] for answer in answers if answer.status_code == 200)


def test_probes_need_no_api_key_and_no_free_thread(database, settings):
    with serving(settings.model_copy(update={"api_key": SecretStr("secret")})) as api:
        assert api.get("/health/live").json() == {"status": "alive"}
        assert api.get("/health/ready").json() == {"status": "ready"}
        assert api.head("/health").status_code == api.head("/health/ready").status_code == 200
