"""Which versions of a model are on disk, and which of them its policy selects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from tfserving_protos.messages import FileSystemStoragePathSourceConfig


# Versions are int64 in the protocol.
MAX_VERSION = 2**63 - 1


def on_disk(base_path: Path) -> dict[int, Path]:
    """The folders of `base_path` that are named by a version number, leading zeros allowed. Others are ignored.

    Raises:
        OSError: the base path cannot be listed.
    """
    folders = (child for child in base_path.iterdir() if child.name.isascii() and child.name.isdigit())
    found = {int(folder.name): folder for folder in sorted(folders, reverse=True)}
    return {version: folder for version, folder in found.items() if version <= MAX_VERSION}


def wanted(available: Iterable[int], policy: FileSystemStoragePathSourceConfig.ServableVersionPolicy) -> set[int]:
    """The versions that the policy selects: the newest unless it says otherwise."""
    versions = sorted(available)
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return set(versions)
    if choice == "specific":
        return set(versions) & set(policy.specific.versions)
    return set(versions[-(policy.latest.num_versions or 1) :])


def fingerprint(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Size and modification time of every file: a version that failed to load is retried when this has changed."""
    found = {}
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except OSError:
            # A temporary file of the tool that is writing here. The next check sees the change.
            continue
        found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found
