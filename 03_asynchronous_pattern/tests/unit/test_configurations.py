import pytest

from serving_common.settings import load
from src.configurations import ProxySettings, WorkerSettings


def test_the_specified_variables_are_read(monkeypatch):
    for name, value in {
        "REDIS_HOST": "r",
        "REDIS_PORT": "1",
        "QUEUE_NAME": "predict_queue",
        "TF_SERVING_HOST": "t",
        "TF_SERVING_GRPC_PORT": "2",
        "MODEL_NAME": "m",
        "NUM_WORKERS": "3",
    }.items():
        monkeypatch.setenv(name, value)

    settings = load(WorkerSettings)

    assert (settings.redis_host, settings.redis_port, settings.keys.queue) == ("r", 1, "predict_queue")
    assert (settings.tf_serving_host, settings.tf_serving_grpc_port, settings.model_name) == ("t", 2, "m")
    assert settings.concurrency == 3


@pytest.mark.parametrize(("name", "value"), [("RATE_LIMIT", "many"), ("RATE_LIMIT", "0/minute"), ("REDIS_PORT", "0")])
def test_an_invalid_value_ends_the_start_with_one_line(monkeypatch, name, value):
    monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit, match=name):
        load(ProxySettings)


def test_an_empty_rate_limit_means_no_limit(monkeypatch):
    monkeypatch.setenv("RATE_LIMIT", "")

    assert load(ProxySettings).rate_limit is None
