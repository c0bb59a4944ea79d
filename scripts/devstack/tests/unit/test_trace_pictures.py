"""The committed traces: they are whole, and their pictures are drawn from them."""

import json

import pytest

from scripts.devstack.table import ROOT
from scripts.devstack.trace_pictures import SPANS, in_tree_order, picture

TRACES = ROOT / "docs/traces"


@pytest.mark.parametrize("name", SPANS)
def test_the_picture_is_that_of_the_trace(name):
    trace = json.loads((TRACES / f"{name}.json").read_text())
    assert (TRACES / f"{name}.svg").read_text() == picture(trace)


def test_a_job_is_one_tree_from_the_proxy_to_the_model():
    trace = json.loads((TRACES / "job.json").read_text())
    assert len({span["trace_id"] for span in trace}) == 1
    (depth, first), *others = in_tree_order(trace)
    assert (depth, first["name"]) == (0, "POST /predict")
    assert all(depth > 0 for depth, _ in others)
    assert {"03-proxy", "03-worker", "02-model_server"} == {span["service"] for span in trace}


def test_the_dead_service_of_a_fan_out_has_failed():
    trace = json.loads((TRACES / "fan_out.json").read_text())
    assert [span["message"] for span in trace if span["status"] == "error"] == ["cannot be reached"]
