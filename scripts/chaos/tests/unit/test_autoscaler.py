"""The autoscaler decides as KEDA's and Kubernetes' documentation say."""

import copy
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.chaos.autoscaler import Autoscaler, scaled_object

SPEC = {
    "minReplicaCount": 1,
    "maxReplicaCount": 10,
    "triggers": [
        {"metricType": "AverageValue", "metadata": {"valueLocation": "jobs_unfinished", "targetValue": "200"}},
        {"metricType": "AverageValue", "metadata": {"valueLocation": "oldest_age_seconds", "targetValue": "10"}},
    ],
    "advanced": {
        "horizontalPodAutoscalerConfig": {
            "behavior": {
                "scaleUp": {
                    "stabilizationWindowSeconds": 0,
                    "policies": [
                        {"type": "Percent", "value": 100, "periodSeconds": 15},
                        {"type": "Pods", "value": 4, "periodSeconds": 15},
                    ],
                },
                "scaleDown": {
                    "stabilizationWindowSeconds": 60,
                    "policies": [{"type": "Percent", "value": 50, "periodSeconds": 30}],
                },
            }
        }
    },
}


@pytest.fixture
def scaler():
    return Autoscaler.of(SPEC)


@pytest.mark.parametrize(
    ("current", "values", "wanted"),
    [
        pytest.param(1, [0, 0], 1, id="never fewer than the minimum"),
        pytest.param(1, [20_000, 0], 10, id="never more than the maximum"),
        pytest.param(1, [401, 0], 3, id="rounded up"),
        pytest.param(2, [439, 0], 2, id="within the tolerance of 10 percent"),
        pytest.param(2, [441, 0], 3, id="beyond the tolerance"),
        pytest.param(1, [0, 45], 5, id="the trigger that asks for most"),
        pytest.param(4, [None, None], None, id="nothing is known"),
        pytest.param(4, [None, 0], None, id="one is missing, and the other must not scale in"),
        pytest.param(4, [None, 80], 8, id="one is missing, and the other may scale out"),
    ],
)
def test_formula(scaler, current, values, wanted):
    assert scaler.formula(current, values) == wanted


def test_scaling_out_follows_the_faster_policy(scaler):
    counts = [1]
    for tick in range(4):
        counts.append(scaler.replicas(15 * tick, counts[-1], [20_000, 0]))
    assert counts == [1, 5, 10, 10, 10]  # four more at once, then twice as many


def test_a_policy_counts_from_the_start_of_its_period(scaler):
    assert scaler.replicas(0, 1, [20_000, 0]) == 5
    assert scaler.replicas(5, 5, [20_000, 0]) == 5  # the four of this period are used up
    assert scaler.replicas(15, 5, [20_000, 0]) == 10


def test_scaling_in_waits_for_the_window_and_halves(scaler):
    assert scaler.replicas(0, 10, [2_000, 0]) == 10
    counts = [10]
    for tick in range(1, 13):
        counts.append(scaler.replicas(15 * tick, counts[-1], [0, 0]))
    assert counts == [10, 10, 10, 10, 10, 5, 5, 2, 2, 1, 1, 1, 1]


def test_what_cannot_be_read_changes_nothing(scaler):
    assert scaler.replicas(0, 7, [1_400, 0]) == 7
    assert [scaler.replicas(15 * tick, 7, [None, None]) for tick in range(1, 20)] == [7] * 19


@given(st.lists(st.tuples(st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1e4)), max_size=40))
@settings(max_examples=100)
def test_replicas_stay_within_bounds_and_steps(values):
    scaler, current = Autoscaler.of(SPEC), 1
    for tick, read in enumerate(values):
        after = scaler.replicas(15 * tick, current, list(read))
        assert 1 <= after <= 10
        assert math.floor(current / 2) <= after <= max(2 * current, current + 4)
        current = after


@pytest.mark.parametrize("change", [{"minReplicaCount": 0}, {"triggers": [{"metricType": "Value"}]}])
def test_a_scaled_object_that_is_not_understood_is_refused(change):
    with pytest.raises(ValueError, match="minReplicaCount must be at least 1"):
        Autoscaler.of(copy.deepcopy(SPEC) | change)


def test_the_committed_scaled_object_is_understood():
    scaler = Autoscaler.of(scaled_object()["spec"])
    assert [trigger.metric for trigger in scaler.triggers] == ["jobs_unfinished", "queue_oldest_job_age_seconds"]
    assert scaler.formula(1, [1000, 0]) == 5
