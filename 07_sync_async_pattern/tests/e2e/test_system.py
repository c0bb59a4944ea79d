"""The whole pattern over HTTP. The same tests run against local processes, compose, and any deployment."""

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


def better(proxy, job_id: str) -> dict[str, Any]:
    """The finished job, with details; asked for as a client does that does not want to wait for ever."""
    for _ in range(6):
        entry: dict[str, Any] = proxy.get(f"/job/{job_id}", params={"wait": 10, "detail": True}).json()[job_id]
        assert "error" not in entry
        if entry["prediction"]:
            return entry
    raise AssertionError(f"no prediction for {job_id}")


def test_health(proxy):
    assert proxy.get("/health").json() == {"health": "ok"}


def test_metadata(proxy):
    metadata = proxy.get("/metadata").json()

    assert metadata["data_sample"] == "base64 encoded image file"
    assert metadata["prediction_sample"] == "Persian cat"
    assert metadata["weights"].keys() == {"sync", "async"}
    assert set(metadata["weights"].values()) <= {"pretrained", "random", "unknown"}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_photograph_from_the_fast_answer_to_the_better_one(proxy, china, file_format):
    answer = proxy.post("/predict", json={"image_data": encoded(china, file_format)}).json()
    job_id = answer["job_id"]
    entry = better(proxy, job_id)

    assert proxy.get(f"/job/{job_id}").json() == {job_id: {"prediction": entry["prediction"]}}
    assert entry["sync"]["prediction"] == answer["result_sync"]
    for top5 in (entry["top5"], entry["sync"]["top5"]):
        assert len(top5) == 5
        assert 0 < sum(each["probability"] for each in top5) <= 1 + 1e-5
    assert entry["top5"][0]["label"] == entry["prediction"]


def test_the_labels_are_right_where_the_weights_are_pretrained(proxy, china):
    weights = proxy.get("/metadata").json()["weights"]
    if "pretrained" not in weights.values():
        pytest.skip("the weights are random")
    answer = proxy.post("/predict", json={"image_data": encoded(china, "PNG")}).json()

    if weights["sync"] == "pretrained":
        assert answer["result_sync"] in PALACES
    if weights["async"] == "pretrained":
        assert better(proxy, answer["job_id"])["prediction"] in PALACES


def test_the_photograph_of_the_proxy(proxy, china):
    answer = proxy.get("/predict/test").json()

    assert better(proxy, answer["job_id"])["sync"]["prediction"] == answer["result_sync"]


def test_each_of_many_images_gets_its_own_result(proxy, china, flower):
    """As many at once as the specification wants in a second."""
    images = [encoded(image, "JPEG") for image in (china, flower)]

    def ask(number: int) -> tuple[str, object]:
        answer = proxy.post("/predict", json={"image_data": images[number % 2]}).json()
        return answer["result_sync"], better(proxy, answer["job_id"])["prediction"]

    with ThreadPoolExecutor(10) as threads:
        answers = list(threads.map(ask, range(20)))

    assert set(answers[::2]) == {answers[0]}
    assert set(answers[1::2]) == {answers[1]}


def test_an_unknown_job(proxy):
    response = proxy.get("/job/nobody")

    assert (response.status_code, response.json()["detail"]) == (404, "Job not found")
