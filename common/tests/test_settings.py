import pytest
from pydantic import Field, SecretStr

from serving_common.settings import HttpSettings, LogLevel, load


class Example(HttpSettings):
    password: SecretStr | None = Field(None, description="A secret.", min_length=8)


def test_reads_the_environment(monkeypatch):
    monkeypatch.setenv("PORT", "1234")
    monkeypatch.setenv("LOG_LEVEL", "warning")

    settings = load(Example)

    assert (settings.port, settings.log_level) == (1234, LogLevel.WARNING)


def test_a_variable_that_is_empty_is_not_set(monkeypatch):
    monkeypatch.setenv("PORT", "")
    monkeypatch.setenv("API_KEY", "")

    settings = load(Example)

    assert (settings.port, settings.api_key) == (8000, None)


def test_a_bad_value_ends_the_process_in_one_line_that_keeps_secrets(monkeypatch):
    monkeypatch.setenv("PORT", "many")
    monkeypatch.setenv("PASSWORD", "hunter2")

    with pytest.raises(SystemExit) as caught:
        load(Example)

    message = str(caught.value.code)
    assert message.startswith("configuration error: PORT: ")
    assert "PASSWORD: " in message
    assert "hunter2" not in message
    assert "\n" not in message


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Example().port = 1  # type: ignore[misc]  # this is what is tested
