import pytest
from pydantic import ValidationError

from serving_common.settings import load
from src.configurations import ProxySettings


def read(monkeypatch, **variables: str) -> ProxySettings:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return load(ProxySettings)


def test_services_are_parsed_from_one_variable(monkeypatch):
    settings = read(monkeypatch, SERVICES="setosa=http://a:1, other-class=https://b/base ,")

    assert {name: str(url) for name, url in settings.services.items()} == {
        "setosa": "http://a:1/",
        "other-class": "https://b/base",
    }


def test_variables_that_resemble_services_are_ignored(monkeypatch):
    before = load(ProxySettings).services

    # Kubernetes sets such variables in every container of a namespace that has a service called "setosa".
    assert read(monkeypatch, SERVICE_SETOSA_PORT="tcp://10.0.0.1:80", SERVICES_X="y").services == before


@pytest.mark.parametrize(
    "services",
    [
        pytest.param("setosa", id="no url"),
        pytest.param("setosa=nowhere", id="not an http url"),
        pytest.param("=http://a", id="no name"),
        pytest.param("a b=http://a", id="invalid name"),
        pytest.param("a=http://a,a=http://b", id="duplicate name"),
        pytest.param(",", id="empty list"),
    ],
)
def test_invalid_services_are_rejected(monkeypatch, services):
    with pytest.raises(SystemExit, match="configuration error: SERVICES"):
        read(monkeypatch, SERVICES=services)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("http://a..b", id="empty label"),
        pytest.param("http://.a", id="empty first label"),
        pytest.param(f"http://{'a' * 64}", id="label too long"),
        pytest.param("http://\N{SNOWMAN}.example", id="refused by IDNA 2008"),
        pytest.param("http://xn--n3h.example", id="refused by IDNA 2008, encoded"),
        pytest.param("http://a/x?y=1", id="query"),
        pytest.param("http://a/#x", id="fragment"),
        pytest.param("http://a:0", id="port 0"),
    ],
)
def test_url_that_no_request_could_use_is_rejected_by_name(monkeypatch, url):
    with pytest.raises(SystemExit, match=r"configuration error: SERVICES: .* the URL of virginica "):
        read(monkeypatch, SERVICES=f"setosa=http://a:1,virginica={url}")


@pytest.mark.parametrize(
    "url", ["http://a_b", "http://a.", "http://[::1]:1", "http://10.0.0.1", "http://b\xfccher.example", "http://u:p@a"]
)
def test_unusual_urls_are_accepted(monkeypatch, url):
    assert "setosa" in read(monkeypatch, SERVICES=f"setosa={url}").services


def test_timeout_of_one_service(monkeypatch):
    assert read(monkeypatch, SERVICE_TIMEOUTS="setosa=2.5").service_timeouts == {"setosa": 2.5}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("SERVICE_TIMEOUT_S", "0", id="zero"),
        pytest.param("SERVICE_TIMEOUTS", "setosa=soon", id="not a number"),
        pytest.param("SERVICE_TIMEOUTS", "setoza=2.5", id="unknown service"),
    ],
)
def test_invalid_timeouts_are_rejected(monkeypatch, name, value):
    with pytest.raises(SystemExit, match=f"configuration error: {name}"):
        read(monkeypatch, **{name: value})


def test_dictionary_of_services_is_validated():
    with pytest.raises(ValidationError):
        ProxySettings.model_validate({"services": {}})


def test_max_waiting_is_a_deprecated_name_of_max_in_flight(monkeypatch):
    assert read(monkeypatch, MAX_WAITING="7").max_in_flight == 7
    assert read(monkeypatch, MAX_IN_FLIGHT="8").max_in_flight == 8
