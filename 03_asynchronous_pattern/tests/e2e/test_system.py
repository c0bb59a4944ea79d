"""The whole pattern over HTTP. The same tests run against local processes, compose, and any deployment."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from sklearn.datasets import load_iris

from tests.conftest import SAMPLE

CLASSES = ("setosa", "versicolor", "virginica")


@pytest.fixture(scope="session")
def proxy(system):
    with httpx.Client(base_url=system.proxy, timeout=60, trust_env=False) as client:
        yield client


def test_health_is_healthy(proxy):
    assert proxy.get("/health").json() == {
        "status": "healthy",
        "components": {"redis": "ok", "tensorflow_serving": "ok"},
    }


def test_metadata_describes_the_signature(proxy):
    metadata = proxy.get("/metadata").json()

    assert metadata["model_spec"] == {"name": "iris", "version": "1"}
    signature = metadata["metadata"]["signature_def"]["serving_default"]
    assert signature["inputs"]["input"] == {
        "dtype": "DT_FLOAT",
        "tensor_shape": {"dim": [{"size": "-1"}, {"size": "4"}]},
    }
    assert signature["outputs"]["output"]["tensor_shape"] == {"dim": [{"size": "-1"}, {"size": "3"}]}


@pytest.mark.parametrize(("path", "body"), [("/predict", SAMPLE), ("/predict/test", None)])
def test_predict_and_fetch_the_result(proxy, path, body):
    job_id = proxy.post(path, json=body).json()["job_id"]
    job = proxy.get(f"/job/{job_id}", params={"wait": 30}).json()

    assert job["job_id"] == job_id
    assert job["status"] == "completed"
    assert job["result"]["prediction"] == 0
    assert job["result"]["class_name"] == "setosa"
    assert sum(job["result"]["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_accuracy_on_all_flowers_one_by_one_and_together(proxy):
    rows, classes = load_iris(return_X_y=True)

    def classify(data: list[list[float]]) -> dict[str, object]:
        job_id = proxy.post("/predict", json={"data": data}).json()["job_id"]
        result: dict[str, object] = proxy.get(f"/job/{job_id}", params={"wait": 30}).json()["result"]
        return result

    with ThreadPoolExecutor(8) as threads:
        alone = [result["prediction"] for result in threads.map(classify, [[row] for row in rows.tolist()])]

    assert classify(rows.tolist())["prediction"] == alone
    assert sum(alone == classes) / len(classes) > 0.95


def test_invalid_input_returns_422(proxy):
    response = proxy.post("/predict", json={"data": [[5.1, 3.5, 1.4]]})

    assert response.status_code == 422
    assert response.json()["errors"][0]["row"] == 0
