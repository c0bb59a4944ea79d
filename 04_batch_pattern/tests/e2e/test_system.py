"""Register, wait for the job, read the predictions: against any running system."""

import httpx
import pytest

from serving_testing.processes import wait_until
from tests.conftest import ROW

# The specified 60 s between two batches, plus the batch.
PREDICTED_WITHIN_S = 120


def last_id(api: httpx.Client) -> int:
    """The id after which a test's own items begin."""
    return int(api.post("/data", json={"values": ROW}).json()["id"])


def test_registered_items_are_predicted_by_the_next_batch(api, flowers):
    rows, probabilities = flowers
    before = last_id(api)
    registered = api.post("/data/list", json={"items": [{"values": row} for row in rows]}).json()
    assert [item["values"] for item in registered] == rows
    assert [item["prediction"] for item in registered] == [None] * 150

    def predicted():
        items = api.get("/data/predicted", params={"after_id": before, "limit": 150}).json()
        return items if len(items) == 150 else None

    wait_until(predicted, within_s=PREDICTED_WITHIN_S)
    items = predicted()
    assert [item["id"] for item in items] == [item["id"] for item in registered]
    for item, wanted in zip(items, probabilities, strict=True):
        assert item["prediction"] == pytest.approx({"0": wanted[0], "1": wanted[1], "2": wanted[2]}, abs=1e-5)
    assert api.get(f"/data/{items[0]['id']}").json() == items[0]
    assert api.get("/data/unpredicted", params={"after_id": before, "limit": 150}).json() == []


def test_large_list_is_predicted(api):
    before = last_id(api)
    assert len(api.post("/data/list", json=[{"values": ROW}] * 10_000).json()) == 10_000
    wait_until(
        lambda: len(api.get("/data/predicted", params={"after_id": before}).json()) == 10_000,
        within_s=PREDICTED_WITHIN_S,
    )


def test_invalid_input_returns_400_and_unknown_item_404(api):
    invalid = api.post("/data/list", json=[{"values": ROW}, {"values": [1, 2, 3]}])
    assert (invalid.status_code, invalid.json()["detail"]) == (400, "Invalid data format")
    unknown = api.get("/data/2147483647")
    assert (unknown.status_code, unknown.json()["detail"]) == (404, "Item not found")
    assert api.get("/data/abc").status_code == 400


def test_health_and_metadata(api):
    assert api.get("/health").json() == {"status": "ok"}
    metadata = api.get("/metadata").json()
    assert (metadata["name"], metadata["weights"]) == ("iris_svc", "trained")
    assert metadata["accuracy"] > 0.95
