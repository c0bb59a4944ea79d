"""Traces of the API and of a run, exported by real processes to a real collector."""

from serving_testing.collector import attributes, running_collector
from tests.conftest import ROW, environment_of
from tests.processes import BatchSystem

TRACE_ID, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_request_and_a_run_are_a_trace_each(models, tmp_path):
    with running_collector() as collector:
        environment = environment_of(models, f"sqlite:///{tmp_path}/items.db") | dict(collector.environment)
        system = BatchSystem(environment)
        with system.api() as (client, _):
            headers = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01"}
            rows = [{"values": ROW}] * 40
            assert client.post("/data/list", json=rows, headers=headers).status_code == 200
            assert collector.tree(TRACE_ID, 2) == ["api: POST /data/list", "  api: INSERT items"]
        [(_, server), (_, insert)] = collector.spans(TRACE_ID)
        assert attributes(insert).items() >= {("db.system.name", "sqlite"), ("db.operation.name", "INSERT")}
        assert server.parent_span_id.hex() == CALLER

        job = system.run_job(BATCH_CHUNK_SIZE="1")
        trace_id = job.log[-1]["trace_id"]
        tree = collector.tree(trace_id, 21)
    assert tree == ["job: batch run", *["  job: predict chunks"] * 20]
    run, *groups = (attributes(span) for _, span in collector.spans(trace_id))
    assert (run["batch.rows"], run["batch.errors"]) == (40, 0)
    assert [group["batch.rows"] for group in groups] == [2] * 20
