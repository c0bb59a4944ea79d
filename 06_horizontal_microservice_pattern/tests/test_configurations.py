import pytest
from pydantic import ValidationError
from src.configurations import ProxySettings

from serving_common.settings import load


def read(monkeypatch, **variables: str) -> ProxySettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(ProxySettings)


def test_the_services_are_one_list(monkeypatch):
    settings = read(monkeypatch, SERVICES="setosa=http://a:1, other-class=https://b/base ,")

    assert {name: str(url) for name, url in settings.services.items()} == {
        "setosa": "http://a:1/",
        "other-class": "https://b/base",
    }


def test_variables_that_only_look_like_services_are_none(monkeypatch):
    before = load(ProxySettings).services

    # Kubernetes sets such variables in every container of a namespace that has a service called "setosa".
    assert read(monkeypatch, SERVICE_SETOSA_PORT="tcp://10.0.0.1:80", SERVICES_X="y").services == before


@pytest.mark.parametrize(
    "services",
    [
        pytest.param("setosa", id="no url"),
        pytest.param("setosa=nowhere", id="no http url"),
        pytest.param("=http://a", id="no name"),
        pytest.param("a b=http://a", id="no good name"),
        pytest.param("a=http://a,a=http://b", id="a name twice"),
        pytest.param(",", id="nothing at all"),
    ],
)
def test_a_bad_list_is_refused(monkeypatch, services):
    with pytest.raises(SystemExit, match="configuration error: SERVICES"):
        read(monkeypatch, SERVICES=services)


def test_a_service_may_have_a_timeout_of_its_own(monkeypatch):
    assert read(monkeypatch, SERVICE_TIMEOUTS="setosa=2.5").service_timeouts == {"setosa": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("SERVICE_TIMEOUT_S", "0", id="none at all"),
        pytest.param("SERVICE_TIMEOUTS", "setosa=soon", id="no number"),
        pytest.param("SERVICE_TIMEOUTS", "setoza=2.5", id="of no service"),
    ],
)
def test_a_bad_timeout_is_refused(monkeypatch, name, value):
    with pytest.raises(SystemExit, match=f"configuration error: {name}"):
        read(monkeypatch, **{name: value})


def test_a_dictionary_is_taken_as_it_is():
    with pytest.raises(ValidationError):
        ProxySettings.model_validate({"services": {}})
