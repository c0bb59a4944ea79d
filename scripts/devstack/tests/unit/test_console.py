"""Parts of the console that need no stack."""

import json

import pytest

from scripts.devstack.console.choosing import RESULTS, Requirements, choose, results
from scripts.devstack.console.diagram import diagram
from scripts.devstack.console.live import quantile, read
from scripts.devstack.console.requests import example, operations
from scripts.devstack.patterns import PATTERNS, WORKS

INFINITE = float("inf")


def test_every_pattern_has_work():
    assert WORKS.keys() == PATTERNS.keys()
    for number, work in WORKS.items():
        assert work.port in PATTERNS[number].published


@pytest.mark.parametrize(
    ("number", "columns", "calls"),
    [
        ("02", {"02-model_server": 1}, []),
        (
            "03",
            {"03-proxy": 1, "03-redis": 2, "03-worker": 3, "02-model_server": 4},
            ["03-proxy 03-redis", "03-proxy 02-model_server", "03-worker 03-redis", "03-worker 02-model_server"],
        ),
        ("04", {"04-api": 1, "04-job": 3, "04/items.db": 2}, ["04-api 04/items.db", "04-job 04/items.db"]),
        (
            "06",
            {"06-proxy": 1, "06-service_setosa": 2, "06-service_versicolor": 2, "06-service_virginica": 2},
            [f"06-proxy 06-service_{name}" for name in ("setosa", "versicolor", "virginica")],
        ),
        ("07", {"07-proxy": 1, "07-redis": 2, "07-worker": 3}, ["07-proxy 07-redis", "07-worker 07-redis"]),
    ],
)
def test_diagram_shows_who_calls_whom(number, columns, calls):
    drawn = diagram(PATTERNS[number], PATTERNS)
    assert {box["id"]: box["column"] for box in drawn["boxes"]} == {"callers": 0} | columns
    assert [f"{caller} {called}" for caller, called in drawn["arrows"][1:]] == calls
    assert drawn["arrows"][0] == ("callers", next(iter(columns)))


def test_metrics_of_work_are_read_and_those_of_probes_are_not():
    reading = read("""
request_count_total{route="/predict"} 4.0
request_duration_seconds_bucket{le="0.1",route="/predict"} 3.0
request_duration_seconds_bucket{le="+Inf",route="/predict"} 4.0
request_duration_seconds_bucket{le="0.1",route="/health"} 90.0
request_duration_seconds_count{route="/predict"} 4.0
request_duration_seconds_sum{route="/predict"} 0.8
request_duration_seconds_count{route="/metrics"} 90.0
queue_length{priority="high"} 2.0
queue_length{priority="normal"} 3.0
python_info{implementation="CPython"} 1.0
""")
    assert (reading.unit, reading.count, reading.seconds) == ("requests/s", 4, 0.8)
    assert (reading.buckets, reading.gauges) == ({0.1: 3, INFINITE: 4}, {"queue_length": 5})


def test_microseconds_of_tensorflow_serving_become_seconds():
    reading = read(
        ':tensorflow:serving:request_latency_bucket{le="500"} 1\n:tensorflow:serving:request_latency_sum 400\n'
    )
    assert [reading.seconds, *reading.buckets] == pytest.approx([0.0004, 0.0005])


@pytest.mark.parametrize(
    ("new", "old", "p50"),
    [
        ({0.1: 10, 0.2: 20, INFINITE: 20}, {}, 0.1),
        ({0.1: 0, 0.2: 4, INFINITE: 4}, {}, pytest.approx(0.15)),
        ({0.1: 8, 0.2: 12, INFINITE: 12}, {0.1: 8, 0.2: 8, INFINITE: 8}, pytest.approx(0.15)),
        ({0.1: 0, INFINITE: 4}, {}, 0.1),
        ({0.1: 4, INFINITE: 4}, {0.1: 4, INFINITE: 4}, None),
        ({}, {}, None),
    ],
)
def test_quantile_is_of_what_came_between(new, old, p50):
    assert quantile(0.5, new, old) == p50


def test_operations_have_the_examples_of_the_document():
    row = {"type": "array", "items": {"type": "number"}, "examples": [[5.1, 3.5]]}
    schemas = {
        "Row": row,
        "Body": {"type": "object", "required": ["data"], "properties": {"data": {"$ref": "#/components/schemas/Row"}}},
        "Endless": {"type": "array", "items": {"$ref": "#/components/schemas/Endless"}},
    }
    body = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Body"}}}}
    job_id = {"name": "job_id", "in": "path", "schema": {"type": "string", "examples": ["a1b2c3"]}}
    paths = {
        "/health": {"get": {}},
        "/predict": {"post": {"requestBody": body}},
        "/job/{job_id}": {"get": {"parameters": [job_id, {"name": "wait", "in": "query", "schema": {}}]}},
    }
    assert operations({"paths": paths, "components": {"schemas": schemas}}) == [
        {"method": "POST", "path": "/predict", "body": {"data": [5.1, 3.5]}},
        {"method": "GET", "path": "/job/a1b2c3", "body": None},
    ]
    assert json.dumps(example({"$ref": "#/components/schemas/Endless"}, schemas)).count("[") == 8
    assert example({"anyOf": [{"type": "integer"}, {"type": "null"}]}, {}) == 1


@pytest.mark.parametrize(
    ("wanted", "best"),
    [
        pytest.param(Requirements(5, 0.5, 10), "02", id="fast enough"),
        pytest.param(Requirements(5, 0.5, 10, several=True), "06", id="several models"),
        pytest.param(Requirements(5, 0.5, 10, lossless=True), "03", id="nothing may be lost"),
        pytest.param(Requirements(2000, 0.5, 10), "03", id="the model is slower than the caller waits"),
        pytest.param(Requirements(2000, 0.5, 10, poorer=True), "07", id="a poorer answer helps"),
        pytest.param(Requirements(2000, 0.001, 10, poorer=True), "03", id="also the poorer one comes too late"),
        pytest.param(Requirements(5, 3600, 10), "04", id="nobody waits"),
    ],
)
def test_choice(wanted, best):
    found = choose(wanted, results())
    assert found["best"] == best
    assert found["patterns"][best]["against"] == ""
    assert all(each["against"] for number, each in found["patterns"].items() if number not in (best, "03"))


def test_machines_follow_rate_and_model():
    fast, slow = (choose(Requirements(model_ms, 1, 1000), results())["patterns"]["02"] for model_ms in (0, 100))
    assert (fast["machines"], slow["machines"]) == (1, 50)  # on two cores, 20 runs/s


def test_results_of_this_machine_come_first(tmp_path):
    committed = json.loads(RESULTS[1].read_text())
    assert results()["source"].startswith("make bench here" if RESULTS[0].exists() else "the committed run")
    partly, whole = tmp_path / "partly.json", tmp_path / "whole.json"
    partly.write_text('{"machine": {}, "side_by_side": {"measurements": []}}')
    whole.write_text(json.dumps(committed | {"machine": committed["machine"] | {"cores": 64}}))
    assert results((tmp_path / "none.json", partly, whole))["cores"] == 64
    with pytest.raises(FileNotFoundError, match="no results of make bench"):
        results((partly,))
