"""Which violations an incident explains, and when a run passes."""

from typing import Any

import pytest

from scripts.chaos.harness import ChaosRun, ClientResult, Incident, Violation
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.runs import modules
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
        pytest.param("", 4, 5, False, id="blames no process"),
    ],
)
def test_a_violation_is_expected_only_during_an_outage_of_the_process_it_blames(blame, started, ended, is_expected):
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
