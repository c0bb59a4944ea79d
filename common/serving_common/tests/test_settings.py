from typing import Annotated

import pytest
from pydantic import AfterValidator, Field, SecretStr

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


@pytest.mark.parametrize("key", ["clé", "two\nlines", " spaces around "])
def test_a_key_that_no_header_can_carry_is_refused_and_not_quoted(monkeypatch, key):
    monkeypatch.setenv("API_KEY", key)

    with pytest.raises(SystemExit) as caught:
        load(Example)

    assert str(caught.value.code).startswith("configuration error: API_KEY: ")
    assert key not in str(caught.value.code)


def test_settings_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Example().port = 1  # type: ignore[misc]  # this is what is tested


@pytest.fixture
def secret_file(tmp_path):
    def write(content: bytes):
        path = tmp_path / "secret"
        path.write_bytes(content)
        return str(path)

    return write


class Queue(Example):
    database_url: Annotated[SecretStr, AfterValidator(lambda value: value)] | None = None


@pytest.mark.parametrize("variable", ["PASSWORD", "DATABASE_URL"])
def test_a_secret_may_stand_in_a_file(monkeypatch, secret_file, variable):
    monkeypatch.setenv(f"{variable}_FILE", secret_file("pass wörd #1 \r\n".encode()))
    monkeypatch.setenv(variable, "")

    secret = getattr(load(Queue), variable.lower())

    assert secret.get_secret_value() == "pass wörd #1 "
    assert "wörd" not in repr(load(Queue))


def test_what_is_no_secret_is_read_from_no_file(monkeypatch, secret_file):
    monkeypatch.setenv("PORT_FILE", secret_file(b"1234"))

    assert load(Example).port == 8000


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"hunter2\xff", "is not UTF-8 text", id="no text"),
        pytest.param(b"\n", "is empty", id="empty"),
    ],
)
def test_a_secret_file_of_no_use_ends_the_process_in_one_line(monkeypatch, secret_file, tmp_path, content, reason):
    path = str(tmp_path / "nowhere") if content is None else secret_file(content)
    monkeypatch.setenv("API_KEY_FILE", path)

    with pytest.raises(SystemExit) as caught:
        load(Example)

    assert caught.value.code == f"configuration error: API_KEY_FILE: {path} {reason}"


def test_a_secret_in_both_places_is_an_error(monkeypatch, secret_file):
    monkeypatch.setenv("API_KEY", "hunter2")
    monkeypatch.setenv("API_KEY_FILE", secret_file(b"hunter3"))

    with pytest.raises(SystemExit) as caught:
        load(Example)

    assert caught.value.code == "configuration error: API_KEY and API_KEY_FILE are both set"


def test_a_bad_secret_from_a_file_is_not_quoted(monkeypatch, secret_file):
    monkeypatch.setenv("PASSWORD_FILE", secret_file(b"hunter2"))

    with pytest.raises(SystemExit) as caught:
        load(Example)

    assert str(caught.value.code).startswith("configuration error: PASSWORD: ")
    assert "hunter2" not in str(caught.value.code)
