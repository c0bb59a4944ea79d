"""The whole pattern over HTTP; runs against local processes, compose, or any deployment."""

import httpx
import pytest
from sklearn.datasets import load_iris

from serving_testing.processes import wait_until
from tests.conftest import CLASSES

SAMPLE = {"data": [[5.1, 3.5, 1.4, 0.2]]}


@pytest.fixture(scope="session")
def proxy(system):
    with httpx.Client(base_url=system.proxy, timeout=30, trust_env=False) as client:
        yield client


def is_pair(prediction: object) -> bool:
    return isinstance(prediction, list) and len(prediction) == 2 and abs(sum(prediction) - 1) < 1e-5


def test_health(proxy):
    assert proxy.get("/health").json() == {"health": "ok"}


@pytest.mark.parametrize("name", ["proxy", *CLASSES])
def test_proxy_and_services_are_alive_and_ready(system, name):
    url = system.proxy if name == "proxy" else system.services[name]
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client:
        assert client.get("/health/live").json() == {"status": "alive"}
        # On a busy machine, services may be too late for one check of the proxy.
        wait_until(lambda: client.get("/health/ready").json() == {"status": "ready"})
        assert [client.head(path).status_code for path in ("/health", "/health/live", "/health/ready")] == [200] * 3


def test_health_all_reports_every_service(proxy):
    assert proxy.get("/health/all").json() == {name: {"health": "ok"} for name in CLASSES}


def test_metadata_lists_the_services(proxy):
    assert proxy.get("/metadata").json()["services"] == list(CLASSES)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("POST", "/predict", SAMPLE), ("GET", "/predict/get/test", None), ("POST", "/predict/post/test", None)],
)
def test_every_service_returns_a_prediction(proxy, method, path, body):
    answers = proxy.request(method, path, json=body).json()

    assert list(answers) == list(CLASSES)
    assert all(answer.keys() == {"prediction"} and is_pair(answer["prediction"]) for answer in answers.values())
    assert max(answers, key=lambda name: answers[name]["prediction"][0]) == "setosa"


def test_predict_label_returns_one_label(proxy):
    answer = proxy.post("/predict/label", json=SAMPLE).json()

    assert answer.keys() == {"prediction"}
    assert answer["prediction"]["label"] == "setosa"
    assert answer["prediction"]["proba"] > 0.9


def test_labels_of_all_iris_rows_singly_and_in_one_request(proxy):
    rows, classes = load_iris(return_X_y=True)
    wanted = [CLASSES[number] for number in classes]

    together = proxy.post("/predict/label", json={"data": rows.tolist()}).json()["prediction"]["label"]
    alone = [proxy.post("/predict/label", json={"data": [row]}).json()["prediction"]["label"] for row in rows.tolist()]

    assert together == alone
    right = sum(label == want for label, want in zip(alone, wanted, strict=True))
    assert right / len(wanted) > 0.95


@pytest.mark.parametrize("name", CLASSES)
def test_each_service_answers_directly(system, name):
    with httpx.Client(base_url=system.services[name], timeout=30, trust_env=False) as service:
        assert service.get("/health").json() == {"health": "ok"}
        assert service.get("/metadata").json()["services"] == [name]
        assert is_pair(service.post("/predict", json=SAMPLE).json()["prediction"])
        assert is_pair(service.get("/predict/test").json()["prediction"])


def test_invalid_input_returns_422(proxy):
    response = proxy.post("/predict", json={"data": [[5.1, 3.5, 1.4]]})

    assert response.status_code == 422
    assert response.json()["errors"][0]["row"] == 0
