from typing import Annotated, ClassVar

import pytest
from pydantic import AfterValidator, Field, SecretStr
from structlog.testing import capture_logs

from serving_common.logs import warn_about_deprecated_variables, warn_about_service_links
from serving_common.settings import HttpSettings, LogLevel, load


class SampleSettings(HttpSettings):
    deprecated_variables: ClassVar = {"OLD_SIZE": "NEW_SIZE"}

    password: SecretStr | None = Field(None, description="A secret.", min_length=8)
    new_size: int = Field(1, description="A renamed setting.", gt=0)


def test_reads_the_environment(monkeypatch):
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("LOG_LEVEL", "warning")

    settings = load(SampleSettings)

    assert (settings.port, settings.log_level) == (1234, LogLevel.WARNING)


def test_an_empty_variable_counts_as_unset(monkeypatch):
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("API_KEY", "")

    settings = load(SampleSettings)

    assert (settings.port, settings.api_key) == (8000, None)


def test_invalid_values_exit_with_one_line_without_secrets(monkeypatch):
    monkeypatch.setenv("PORT", "many")
    monkeypatch.setenv("PASSWORD", "hunter2")

    with pytest.raises(SystemExit) as caught:
        load(SampleSettings)

    message = str(caught.value.code)
    assert message.startswith("configuration error: PORT: ")
    assert "PASSWORD: " in message
    assert "hunter2" not in message
    assert "\n" not in message


@pytest.mark.parametrize("key", ["clé", "two\nlines", " spaces around "])
def test_api_key_unfit_for_a_header_is_rejected_and_not_quoted(monkeypatch, key):
    monkeypatch.setenv("API_KEY", key)

    with pytest.raises(SystemExit) as caught:
        load(SampleSettings)

    assert str(caught.value.code).startswith("configuration error: API_KEY: ")
    assert key not in str(caught.value.code)


def test_settings_are_immutable():
    with pytest.raises(ValueError, match="frozen"):
        SampleSettings().port = 1  # type: ignore[misc]  # this is what is tested


@pytest.fixture
def secret_file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "secret"
        path.write_bytes(content)
        return str(path)

    return write


class DatabaseSettings(SampleSettings):
    database_url: Annotated[SecretStr, AfterValidator(lambda value: value)] | None = None


@pytest.mark.parametrize("variable", ["PASSWORD", "DATABASE_URL"])
def test_secret_is_read_from_a_file(monkeypatch, secret_file, variable):
    monkeypatch.setenv(f"{variable}_FILE", secret_file("pass wörd #1 \r\n".encode()))
    monkeypatch.setenv(variable, "")

    secret = getattr(load(DatabaseSettings), variable.lower())

    assert secret.get_secret_value() == "pass wörd #1 "
    assert "wörd" not in repr(load(DatabaseSettings))


def test_only_secrets_are_read_from_files(monkeypatch, secret_file):
    monkeypatch.setenv("PORT_FILE", secret_file(b"1234"))

    assert load(SampleSettings).port == 8000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"hunter2\xff", "is not UTF-8 text", id="not text"),
        pytest.param(b"\n", "is empty", id="empty"),
    ],
)
def test_unusable_secret_file_exits_with_one_line(monkeypatch, secret_file, tmp_path, content, reason):
    path = str(tmp_path / "nowhere") if content is None else secret_file(content)
    monkeypatch.setenv("API_KEY_FILE", path)

    with pytest.raises(SystemExit) as caught:
        load(SampleSettings)

    assert caught.value.code == f"configuration error: API_KEY_FILE: {path} {reason}"


def test_secret_in_both_variable_and_file_is_an_error(monkeypatch, secret_file):
    monkeypatch.setenv("API_KEY", "hunter2")
    monkeypatch.setenv("API_KEY_FILE", secret_file(b"hunter3"))

    with pytest.raises(SystemExit) as caught:
        load(SampleSettings)

    assert caught.value.code == "configuration error: API_KEY and API_KEY_FILE are both set"


def test_invalid_secret_from_a_file_is_not_quoted(monkeypatch, secret_file):
    monkeypatch.setenv("PASSWORD_FILE", secret_file(b"hunter2"))

    with pytest.raises(SystemExit) as caught:
        load(SampleSettings)

    assert str(caught.value.code).startswith("configuration error: PASSWORD: ")
    assert "hunter2" not in str(caught.value.code)


def test_deprecated_variable_is_read_and_warned_about(monkeypatch):
    monkeypatch.setenv("OLD_SIZE", "5")
    monkeypatch.setenv("MAX_BODIES_BYTES", "6")  # of a base class

    settings = load(SampleSettings)

    assert (settings.new_size, settings.max_inflight_body_bytes) == (5, 6)
    assert warnings(settings) == {
        "MAX_BODIES_BYTES": "used; rename it to MAX_INFLIGHT_BODY_BYTES",
        "OLD_SIZE": "used; rename it to NEW_SIZE",
    }


def test_new_variable_wins_over_its_deprecated_name(monkeypatch):
    monkeypatch.setenv("OLD_SIZE", "5")
    monkeypatch.setenv("NEW_SIZE", "7")

    settings = load(SampleSettings)

    assert settings.new_size == 7
    assert warnings(settings) == {"OLD_SIZE": "ignored, because NEW_SIZE is set too"}


def test_invalid_value_of_a_deprecated_variable_is_reported_under_its_name(monkeypatch):
    monkeypatch.setenv("OLD_SIZE", "0")

    with pytest.raises(SystemExit, match="configuration error: OLD_SIZE: Input should be greater than 0"):
        load(SampleSettings)


def test_a_port_that_kubernetes_sets_for_a_service_is_ignored_with_one_line(monkeypatch):
    class Ports(HttpSettings):
        redis_port: int = 6379
        mysql_port: int = 3306

    monkeypatch.setenv("REDIS_PORT", "tcp://10.0.0.1:6379")
    monkeypatch.setenv("MYSQL_PORT", "3307")

    settings = load(Ports)

    assert (settings.redis_port, settings.mysql_port) == (6379, 3307)
    with capture_logs() as lines:
        warn_about_service_links(settings)
    assert [(line["event"], line["variable"]) for line in lines] == [("variable_ignored", "REDIS_PORT")]


def warnings(settings: SampleSettings) -> dict[str, str]:
    with capture_logs() as lines:
        warn_about_deprecated_variables(settings)
    assert {(line["event"], line["log_level"]) for line in lines} == {("deprecated_variable", "warning")}
    return {line["variable"]: line["outcome"] for line in lines}
