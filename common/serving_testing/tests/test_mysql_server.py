"""The private database server that other tests, the benchmarks and `make prove` use."""

import pytest

from serving_testing.mysql_server import MySqlServer, mysql_binary


def test_a_killed_server_can_be_started_again(tmp_path):
    binary = mysql_binary()
    if binary is None:
        pytest.skip("neither mariadbd nor mysqld is installed")
    server = MySqlServer(binary, tmp_path)
    server.install()
    server.install()  # nothing, the second time
    for _ in range(2):
        assert not server.is_up()
        server.start()
        assert server.is_up()
        server.stop()
        server = MySqlServer(binary, tmp_path, server.port)
