"""TLS modes, against a server with a certificate of its own CA."""

import shutil
import ssl
import subprocess

import pytest
from sqlalchemy import text

from serving_common.errors import StartupError
from serving_testing.mysql_server import MySqlServer, mysql_binary
from src.configurations import ApiSettings
from src.db.database import open_database
from tests.conftest import empty_database, private_url


class TlsServer(MySqlServer):
    files: tuple[str, str]

    @property
    def _options(self) -> list[str]:
        return [*super()._options, f"--ssl-cert={self.files[0]}", f"--ssl-key={self.files[1]}"]


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    binary, openssl = mysql_binary(), shutil.which("openssl")
    if binary is None or openssl is None:
        pytest.skip("mariadbd or mysqld, or openssl, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = f"{folder}/server.pem", f"{folder}/server.key"
    subject = ["-subj", "/CN=db.example", "-addext", "subjectAltName=DNS:localhost"]
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", certificate]
    subprocess.run([*make, *subject], check=True, capture_output=True)
    server = TlsServer(binary, folder)
    server.files = (certificate, key)
    server.install()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def cipher(tls_server):
    """Connects and returns the connection's cipher."""
    with empty_database(private_url(tls_server)) as url:

        def connect(host="localhost", **variables):
            url_of_host = url.replace("127.0.0.1", host)
            settings = ApiSettings.model_validate({"database_url": url_of_host, "database_wait_s": 0, **variables})
            with open_database(settings) as database, database.transaction() as db:
                return db.execute(text("SHOW STATUS LIKE 'Ssl_cipher'")).one()[1]

        yield connect


@pytest.mark.parametrize("mode", ["PREFERRED", "REQUIRED"])
def test_connection_is_encrypted(cipher, mode):
    assert cipher(mysql_ssl_mode=mode)


def test_a_preferred_connection_reads_no_certificates(cipher, private_server, monkeypatch):
    """None is checked, and loading them takes 45 ms of CPU time, for each request while the database is away."""
    with empty_database(private_url(private_server)) as url, monkeypatch.context() as patched:
        patched.delattr(ssl, "create_default_context")
        assert cipher()
        settings = ApiSettings.model_validate({"database_url": url, "database_wait_s": 0})
        with open_database(settings) as database:  # of a server without TLS
            database.ping()


def test_disabled_is_not_encrypted(cipher):
    assert cipher(mysql_ssl_mode="DISABLED") == ""


def test_certificate_and_host_name_are_verified(cipher, tls_server):
    ca = tls_server.files[0]
    assert cipher(mysql_ssl_mode="VERIFY_IDENTITY", mysql_ssl_ca=ca)
    assert cipher("127.0.0.1", mysql_ssl_mode="VERIFY_CA", mysql_ssl_ca=ca)
    for variables in (
        {"host": "127.0.0.1", "mysql_ssl_mode": "VERIFY_IDENTITY", "mysql_ssl_ca": ca},
        {"mysql_ssl_mode": "VERIFY_CA"},  # the system does not know this CA
    ):
        with pytest.raises(StartupError, match=r"No TLS connection to the database .*CERTIFICATE_VERIFY_FAILED"):
            cipher(**variables)


def test_required_fails_without_tls_on_the_server(private_server):
    with empty_database(private_url(private_server)) as url:
        settings = ApiSettings.model_validate({"database_url": f"{url}?ssl-mode=REQUIRED", "database_wait_s": 1e9})
        with pytest.raises(StartupError, match="No TLS connection"), open_database(settings):
            pass


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unusable_ca_file_is_named(tmp_path, content):
    ca = tmp_path / "ca.pem"
    if content is not None:
        ca.write_text(content)
    settings = ApiSettings.model_validate({"database_url": f"mysql://root@127.0.0.1:1/d?ssl-ca={ca}"})
    with pytest.raises(StartupError, match=f"the CA file {ca} cannot be used"), open_database(settings):
        pass
