"""The private database server of the tests, the benchmarks and `make prove`."""

import os
import subprocess
import sys

import pytest

from serving_testing.mysql_server import MySqlServer, mysql_binary


def test_killed_server_restarts(tmp_path):
    binary = mysql_binary()
    if binary is None:
        pytest.skip("neither mariadbd nor mysqld is installed")
    server = MySqlServer(binary, tmp_path)
    server.install()
    server.install()  # idempotent
    for _ in range(2):
        assert not server.is_up()
        server.start()
        assert server.is_up()
        server.stop()
        server = MySqlServer(binary, tmp_path, server.port)


@pytest.mark.parametrize("version", ["mysqld  Ver 9.7.0 for Linux", "mariadbd  Ver 11.8.3-MariaDB"])
def test_server_that_may_not_make_its_data_folder_is_reported_with_its_words(tmp_path, version):
    """As one that AppArmor confines to its own folders."""
    denied = "OS errno 13 - Permission denied"
    for name in ("mysqld", "mariadb-install-db"):
        program = tmp_path / name
        program.write_text(
            f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{version}' && exit\necho '{denied}' >&2\nexit 1\n"
        )
        program.chmod(0o755)
    (tmp_path / "mariadbd").symlink_to("mysqld")
    command = [sys.executable, "-m", "serving_testing.mysql_server", "1", str(tmp_path / "state")]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert done.stderr.endswith(f" cannot create {tmp_path}/state/data:\n{denied}\n")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state/data").exists()
