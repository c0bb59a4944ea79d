from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import make_url

from serving_common.settings import load
from src.configurations import ApiSettings, JobSettings
from src.db.tls import SslMode, Tls


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_any_password_is_preserved_in_the_url(password):
    url = JobSettings(mysql_password=password).url
    assert url.password == password
    assert make_url(url.render_as_string(hide_password=False)).password == password


def test_specified_variables_set_the_database_url(monkeypatch):
    variables = {"SERVER": "db", "USER": "me", "PASSWORD": "p@ss/w:rd", "DATABASE": "flowers", "PORT": "3307"}
    for name, value in variables.items():
        monkeypatch.setenv(f"MYSQL_{name}", value)
    url = ApiSettings().url
    assert url.drivername == "mysql+pymysql"
    assert (url.host, url.port, url.username, url.password, url.database) == ("db", 3307, "me", "p@ss/w:rd", "flowers")


def test_defaults_are_those_of_the_specification():
    api, job = ApiSettings(), JobSettings()
    assert api.url.render_as_string(hide_password=False) == "mysql+pymysql://root:password@localhost:3306/sample_db"
    assert str(job.model_filepath) == "/app/models/iris_svc.onnx"
    assert str(job.label_filepath) == "/app/models/label.json"
    assert (api.port, api.max_body_bytes) == (8000, 8 * 1024 * 1024)
    assert (job.job_wait_seconds, job.batch_threads) == (60, 4)


@pytest.mark.parametrize(
    ("database_url", "wanted"),
    [
        ("mysql://u:p@h/d", "mysql+pymysql://u:p@h/d"),
        ("mariadb://u:p@h/d", "mysql+pymysql://u:p@h/d"),
        ("mysql+asyncmy://u:p@h/d", "mysql+pymysql://u:p@h/d"),
        ("sqlite:///items.db", "sqlite:///items.db"),
        ("sqlite+aiosqlite:///items.db", "sqlite:///items.db"),
    ],
)
def test_database_url_takes_precedence_with_our_drivers(database_url, wanted):
    assert JobSettings(database_url=database_url).url.render_as_string(hide_password=False) == wanted


@pytest.mark.parametrize(
    "invalid",
    ["secret", "mysql://root:secret@host:port/x", "postgresql://u:secret@h/d", "sqlite://", "sqlite:///:memory:"],
)
def test_invalid_database_url_is_rejected_without_being_shown(invalid):
    with pytest.raises(ValidationError) as caught:
        JobSettings(database_url=invalid)
    assert all("secret" not in error["msg"] for error in caught.value.errors())


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, Tls(mode=SslMode.PREFERRED)),
        ({"mysql_ssl_mode": "VERIFY_CA", "mysql_ssl_ca": "/ca.pem"}, Tls(mode=SslMode.VERIFY_CA, ca=Path("/ca.pem"))),
        ({"database_url": "mysql://u:p@h/d?ssl-mode=REQUIRED"}, Tls(mode=SslMode.REQUIRED)),
        ({"database_url": "mysql://u:p@h/d?sslMode=verify_identity"}, Tls(mode=SslMode.VERIFY_IDENTITY)),
        ({"database_url": "mysql://u:p@h/d?ssl_mode=DISABLED&charset=utf8mb4"}, Tls(mode=SslMode.DISABLED)),
        ({"database_url": "mysql://u:p@h/d?ssl_ca=/ca.pem"}, Tls(mode=SslMode.VERIFY_CA, ca=Path("/ca.pem"))),
        ({"database_url": "mysql://u:p@h/d?sslaccept=strict&reconnect=true"}, Tls(mode=SslMode.VERIFY_IDENTITY)),
        (
            {"database_url": "mysql://u:p@h/d?ssl_ca=/ca.pem&ssl_verify_cert=true&ssl_verify_identity=true"},
            Tls(mode=SslMode.VERIFY_IDENTITY, ca=Path("/ca.pem")),
        ),
        ({"mysql_ssl_ca": "/ca.pem"}, Tls(mode=SslMode.VERIFY_CA, ca=Path("/ca.pem"))),
        ({"database_url": "mysql://u:p@h/d", "mysql_ssl_mode": "REQUIRED"}, Tls(mode=SslMode.REQUIRED)),
    ],
)
def test_tls_modes_of_variables_and_connection_strings(variables, wanted):
    settings = JobSettings.model_validate(variables)
    assert settings.tls == wanted
    assert not any("ssl" in name.lower() for name in settings.url.query)


@pytest.mark.parametrize(
    ("database_url", "reason"),
    [
        ("mysql://u:s3cret@tail@h/d", "must be written as %40"),
        ("mysql://u:s3cret@h", "must name a database"),
        ("mysql://u:s3cret@h/", "must name a database"),
        (
            "mysql://u:s3cret@h/d?compress=true",
            "has the option compress with a value that is not understood; known are ssl-mode,",
        ),
        ("mysql://u:s3cret@h/d?ssl-mode=s3cret", "has another ssl-mode than DISABLED, PREFERRED"),
    ],
)
def test_unclear_database_url_is_named_in_one_line(monkeypatch, database_url, reason):
    monkeypatch.setenv("DATABASE_URL", database_url)
    with pytest.raises(SystemExit) as caught:
        load(JobSettings)
    message = str(caught.value)
    assert reason in message
    assert "\n" not in message
    assert "s3cret" not in message
    assert "tail" not in message


@pytest.mark.parametrize("invalid", [-1, float("inf"), float("nan"), 1e10])
def test_job_wait_must_be_a_finite_duration(invalid):
    with pytest.raises(ValidationError):
        JobSettings.model_validate({"job_wait_seconds": invalid})


@pytest.mark.parametrize("name", ["batch_threads", "batch_chunk_size", "batch_slice_size"])
def test_sizes_must_be_positive(name):
    with pytest.raises(ValidationError):
        JobSettings.model_validate({name: 0})
