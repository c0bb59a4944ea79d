"""A private mariadbd or mysqld. Its user root has all rights and no password.

As a program, it becomes one with an empty database `items`, on which a user `app` without a password has all rights:
`python -m serving_testing.mysql_server PORT FOLDER [OPTION…]`.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from serving_testing.processes import free_port, wait_until


def mysql_binary() -> str | None:
    """The mariadbd or mysqld of this machine, or None."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    return shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)


def is_mariadb(binary: str) -> bool:
    """Whether it is MariaDB's server, rather than MySQL's."""
    return b"MariaDB" in subprocess.run([binary, "--version"], capture_output=True, check=True).stdout


class MySqlServer:
    """A server on a port of 127.0.0.1. Its data survives a kill and restart."""

    def __init__(self, binary: str, folder: Path, port: int | None = None) -> None:
        self.port = port or free_port()
        self._binary = binary
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Create its data folder unless it exists. Raises RuntimeError with the reason."""
        data = self._folder / "data"
        if data.exists():
            return
        if is_mariadb(self._binary):
            data.mkdir(parents=True)
            install = ["mariadb-install-db", *self._options[:2], "--auth-root-authentication-method=normal"]
        else:
            install = [self._binary, *self._options[:2], "--initialize-insecure"]
        command = [*install, *self._user]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        if done.returncode:
            shutil.rmtree(data, ignore_errors=True)  # half of one would count as installed
            raise RuntimeError(f"{install[0]} cannot create {data}:\n{done.stdout.strip()}")

    @property
    def command(self) -> list[str]:
        """The command that starts it, once it is installed."""
        return [self._binary, *self._options, *self._user]

    def start(self) -> None:
        """Return once it answers."""
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command, stdout=log, stderr=log)
        wait_until(self.is_up)

    def is_up(self) -> bool:
        """Whether it accepts connections; AssertionError, with its log, if it has exited."""
        if self._process is not None:
            assert self._process.poll() is None, (self._folder / "log").read_text()
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                return bool(connection.recv(1))  # the server speaks first
        except OSError:
            return False

    def stop(self, signal_number: int = signal.SIGKILL) -> None:
        """Send the signal and wait for the exit."""
        if self._process is not None:
            self._process.send_signal(signal_number)
            self._process.wait()

    @property
    def _options(self) -> list[str]:
        return [
            "--no-defaults",
            f"--datadir={self._folder}/data",
            f"--socket={self._folder}/socket",
            f"--pid-file={self._folder}/pid",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--log-bin-trust-function-creators=1",  # tests create triggers
            "--local-infile=1",
        ]

    @property
    def _user(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []


def main() -> None:  # pragma: no cover - exec ends the measurement
    """Replace this process by the server. Exits with the reason if there is none, or if it cannot be installed."""
    port, folder, *more = sys.argv[1:]
    if (binary := mysql_binary()) is None:
        sys.exit("neither mariadbd nor mysqld is installed")
    server = MySqlServer(binary, Path(folder), int(port))
    try:
        server.install()
    except RuntimeError as exc:
        sys.exit(str(exc))
    first = Path(folder) / "first.sql"
    # Not into the binary log: a replica executes it as well.
    first.write_text(
        "SET SESSION sql_log_bin = 0;\nCREATE DATABASE IF NOT EXISTS items;\n"
        "CREATE USER IF NOT EXISTS app@localhost;\nGRANT ALL ON items.* TO app@localhost;\n"
    )
    os.execv(binary, [*server.command, f"--init-file={first}", *more])


if __name__ == "__main__":
    main()
