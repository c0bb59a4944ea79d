"""Files that are whole or not there: hashes, atomic writes, a lock between builders."""

import fcntl
import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BuildError(Exception):
    """A failure that its message, one line, explains to the person who started the build."""


def say(message: str) -> None:
    """Tell the person at the terminal; standard output holds the results alone."""
    print(message, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`; what was written there takes target's place when the block ends well.

    Whoever holds `locked(target.parent)` is the only writer, so the name is fixed: a killed build leaves at most one
    such file, and the next build overwrites it.
    """
    temporary = target.with_name(f".{target.name}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder, and be its only builder; waits for another one. The kernel frees the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
