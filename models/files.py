"""Files that are whole or not there: hashes, atomic writes, a lock between builders."""

import fcntl
import hashlib
import os
import shutil
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
    """Of a file's content; of a folder, of the names and contents of all files in it."""
    if path.is_dir():
        parts = [f"{file.relative_to(path).as_posix()} {sha256_of(file)}\n" for file in files_of(path)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """In bytes; of a folder, of all files in it."""
    return sum(file.stat().st_size for file in files_of(path)) if path.is_dir() else path.stat().st_size


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`; the file or folder written there takes its place when the block ends well.

    Whoever holds `locked(target.parent)` is the only writer, so the name is fixed: a killed build leaves at most one
    such file, and the next build overwrites it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    remove(temporary)
    try:
        yield temporary
        for path in files_of(temporary) if temporary.is_dir() else [temporary]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if target.is_dir():  # which a rename cannot replace
            remove(target)
        temporary.replace(target)
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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
