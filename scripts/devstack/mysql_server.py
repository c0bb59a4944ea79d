"""Becomes a private mariadbd or mysqld with an empty database `items`: `python mysql_server.py PORT FOLDER`."""

import os
import sys
from pathlib import Path

from serving_testing.mysql_server import MySqlServer, mysql_binary


def main() -> None:
    """Replaces this process; exits with one line if there is no server to become."""
    port, folder = sys.argv[1:]
    if (binary := mysql_binary()) is None:
        sys.exit("neither mariadbd nor mysqld is installed")
    server = MySqlServer(binary, Path(folder), int(port))
    server.install()
    first = Path(folder) / "first.sql"
    first.write_text("CREATE DATABASE IF NOT EXISTS items;\n")
    os.execv(binary, [*server.command, f"--init-file={first}"])  # noqa: S606 - the stack's own server


if __name__ == "__main__":
    main()
