"""Which violations an incident explains, and when a run passes."""

import asyncio
import json
from typing import Any

import httpx
import pytest

from scripts.chaos.harness import ChaosRun, ClientResult, Incident, QueueClients, Violation
from scripts.chaos.loss_report import alert_of, alerts_by_fault
from scripts.devstack import runs
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import SkippedError, modules
from scripts.devstack.tests.dummies import DUMMIES

DUMMY = DUMMIES["90"]


def test_every_pattern_has_a_chaos_module():
    assert modules("scripts.chaos").keys() == PATTERNS.keys()


@pytest.mark.parametrize(
    ("blame", "started", "ended", "is_expected"),
    [
        pytest.param("service", 1, 3, True, id="in flight at the start"),
        pytest.param("service", 4, 5, True, id="during the outage"),
        pytest.param("service", 6.5, 7, True, id="within the grace period"),
        pytest.param("service", 8, 9, False, id="after the outage"),
        pytest.param("service", 1, 1.5, False, id="before the outage"),
        pytest.param("other", 4, 5, False, id="blames another process"),
        pytest.param("kill -9", 4, 5, True, id="blames the fault"),
        pytest.param("failover", 4, 5, False, id="blames another fault"),
        pytest.param("", 4, 5, False, id="blames nothing"),
    ],
)
def test_a_violation_is_expected_only_during_an_outage_that_it_blames(blame, started, ended, is_expected):
    result = ClientResult("", started, ended, Violation("", blame))
    run = ChaosRun(pattern=DUMMY, accepted=1, grace_s=1, results=[result])
    for is_outage in (True, False):
        run.incidents = [Incident("kill -9", "service", is_outage, started=2, ended=6)]
        assert (run.failed == []) is (is_expected and is_outage)
        assert run.is_passed is (is_expected and is_outage)


@pytest.mark.parametrize("change", [{"lost": 1}, {"twice": 1}, {"stuck": 1}, {"error": "x"}, {"accepted": 0}])
def test_a_run_passes_only_if_every_column_is_as_required(change):
    required: dict[str, Any] = {"pattern": DUMMY, "accepted": 1, "twice": 0}
    incident = Incident("kill -9", "service", is_outage=True, started=0, ended=1)
    assert ChaosRun(**required, incidents=[incident]).is_passed
    assert not ChaosRun(**(required | change), incidents=[incident]).is_passed
    assert not ChaosRun(**required).is_passed


class StubClients(QueueClients):
    """Jobs whose states are given."""

    def __init__(self, run, states):
        super().__init__(run, httpx.AsyncClient(), [*states])
        self.states = states

    async def state(self, job_id, wait_s):
        return self.states[job_id]


def stored(*ids):
    return b"".join(b"*5\r\n$3\r\nSET\r\n$13\r\nresult:%s\r\n$1\r\nx\r\n" % job_id.encode() for job_id in ids)


@pytest.mark.parametrize(
    ("states", "written", "columns"),
    [
        ({"aaaaaa": "completed", "bbbbbb": "completed"}, ["aaaaaa", "bbbbbb"], (0, 0, 0, "")),
        ({"aaaaaa": "completed"}, ["aaaaaa", "aaaaaa", "cccccc"], (0, 1, 0, "")),
        ({"aaaaaa": "pending", "bbbbbb": "processing"}, [], (0, 0, 2, "")),
        ({"aaaaaa": "status 404", "bbbbbb": "failed"}, [], (2, 0, 0, "")),
        ({"aaaaaa": "completed"}, [], (0, 0, 0, "1 jobs completed, but Redis's file has results of 0")),
    ],
    ids=["all once", "stored twice", "not done", "lost", "not stored"],
)
def test_every_accepted_job_is_accounted_for(tmp_path, monkeypatch, states, written, columns):
    monkeypatch.setattr(ChaosRun, "run_dir", tmp_path)
    (tmp_path / "90").mkdir()
    (tmp_path / "90/appendonly.aof").write_bytes(stored(*written))
    run = ChaosRun(pattern=DUMMY, unit="jobs")
    asyncio.run(StubClients(run, states).account("result:{}"))
    assert (run.lost, run.twice, run.stuck, run.error) == columns


def test_the_newest_job_is_one_that_was_accepted_after_the_fault():
    clients = StubClients(ChaosRun(pattern=DUMMY), {"aaaaaa": "failed", "bbbbbb": "pending"})
    clients.ids = ["aaaaaa"]

    async def accept_one():
        waiting = asyncio.create_task(clients.newest_done())
        await asyncio.sleep(0.03)
        clients.ids.append("bbbbbb")
        await asyncio.sleep(0.03)
        assert not waiting.done()
        clients.states["bbbbbb"] = "completed"
        await waiting

    asyncio.run(accept_one())


def test_a_machine_without_redis_skips_what_needs_it(monkeypatch):
    monkeypatch.setattr(runs, "redis_binary", lambda: None)
    with pytest.raises(SkippedError, match="no redis-server found"):
        runs.require_redis()


def test_a_fault_is_reported_with_the_alerts_that_it_fires(tmp_path):
    def case(pattern, fault, process, *fired):
        return {"pattern": pattern, "fault": fault, "process": process, "fired": fired}

    cases = [
        case("06", "kill -9", "service_setosa"),
        case("06", "kill -9, 3 times", "service_setosa", "ProcessRestarts 06"),
        case("02", "hang, 2 s", "model_server", "JobAgeBurnsSlowly 03"),
        case("all", "garbage", "every port"),
    ]
    (tmp_path / "alerts.json").write_text(json.dumps({"cases": cases}))
    known = alerts_by_fault(tmp_path / "alerts.json")

    def alert(number, fault, target):
        return alert_of(Incident(fault, target, is_outage=False, started=0), number, known)

    assert alert("06", "kill -9", "service_virginica") == "none; 3 times: ProcessRestarts"
    assert alert("03", "hang", "model_server") == "2 s: JobAgeBurnsSlowly 03"
    assert alert("02", "garbage", "REST port") == "none"
    assert alert("03", "kill -9", "redis") == "not tried"
    assert alerts_by_fault(tmp_path / "none.json") == {}
