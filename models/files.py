"""Hashes, atomic writes, and a lock between builders."""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BuildError(Exception):
    """A failure with a one-line message for the person who started the build."""


def say(message: str) -> None:
    """Print to stderr; stdout holds only the results."""
    print(message, file=sys.stderr, flush=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content; of a folder, over the names and contents of all its files."""
    if path.is_dir():
        parts = [f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in files_of(path)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in files_of(path)) if path.is_dir() else path.stat().st_size


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path next to `target`; it replaces `target` atomically unless the block raises.

    Hold `locked(target.parent)`: the name is fixed, so that a killed build leaves at most one such file, which the next
    build overwrites.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    remove(temporary)
    try:
        yield temporary
        for path in files_of(temporary) if temporary.is_dir() else [temporary]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir():  # a rename cannot replace a folder
            remove(target)
        temporary.replace(target)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder and hold its lock; waits for another builder. The kernel frees the lock of a killed one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
