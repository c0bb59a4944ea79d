"""The whole pattern over HTTP, against local processes, compose or any deployment."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

PALACES = {"palace", "castle", "monastery"}


def encoded(photo: Image.Image, file_format: str) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, file_format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="session")
def china() -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg"))


@pytest.fixture(scope="session")
def flower() -> Image.Image:
    return Image.fromarray(load_sample_image("flower.jpg"))


def completed_job(proxy, job_id: str) -> dict[str, Any]:
    """The completed job with details; gives up after a minute."""
    for _ in range(6):
        entry: dict[str, Any] = proxy.get(f"/job/{job_id}", params={"wait": 10, "detail": True}).json()[job_id]
        assert "error" not in entry
        if entry["prediction"]:
            return entry
    raise AssertionError(f"no prediction for {job_id}")


def test_health_returns_ok(proxy):
    assert proxy.get("/health").json() == {"health": "ok"}


def test_metadata_has_specified_fields(proxy):
    metadata = proxy.get("/metadata").json()

    assert metadata["data_sample"] == "base64 encoded image file"
    assert metadata["prediction_sample"] == "Persian cat"
    assert metadata["weights"].keys() == {"sync", "async"}
    assert set(metadata["weights"].values()) <= {"pretrained", "random", "unknown"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_photo_gets_sync_then_async_result(proxy, china, file_format):
    answer = proxy.post("/predict", json={"image_data": encoded(china, file_format)}).json()
    job_id = answer["job_id"]
    entry = completed_job(proxy, job_id)

    assert proxy.get(f"/job/{job_id}").json() == {job_id: {"prediction": entry["prediction"]}}
    assert entry["sync"]["prediction"] == answer["result_sync"]
    for top5 in (entry["top5"], entry["sync"]["top5"]):
        assert len(top5) == 5
        assert 0 < sum(each["probability"] for each in top5) <= 1 + 1e-5
    assert entry["top5"][0]["label"] == entry["prediction"]


def test_pretrained_labels_are_correct(proxy, china):
    weights = proxy.get("/metadata").json()["weights"]
    if "pretrained" not in weights.values():
        pytest.skip("the weights are random")
    answer = proxy.post("/predict", json={"image_data": encoded(china, "PNG")}).json()

    if weights["sync"] == "pretrained":
        assert answer["result_sync"] in PALACES
    if weights["async"] == "pretrained":
        assert completed_job(proxy, answer["job_id"])["prediction"] in PALACES


def test_predict_test_uses_sample_photo(proxy, china):
    answer = proxy.get("/predict/test").json()

    assert completed_job(proxy, answer["job_id"])["sync"]["prediction"] == answer["result_sync"]


def test_concurrent_images_get_their_own_results(proxy, china, flower):
    """Ten at a time, the specified requests per second."""
    images = [encoded(image, "JPEG") for image in (china, flower)]

    def classify(number: int) -> tuple[str, object]:
        answer = proxy.post("/predict", json={"image_data": images[number % 2]}).json()
        return answer["result_sync"], completed_job(proxy, answer["job_id"])["prediction"]

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(classify, range(20)))

    assert set(answers[::2]) == {answers[0]}
    assert set(answers[1::2]) == {answers[1]}


def test_unknown_job_returns_404(proxy):
    response = proxy.get("/job/nobody")

    assert (response.status_code, response.json()["detail"]) == (404, "Job not found")
