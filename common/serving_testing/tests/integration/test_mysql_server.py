"""The private database server of the tests, the benchmarks and `make prove`."""

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
