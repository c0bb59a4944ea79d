"""manifest.json: what was built, from what, by which versions. Services read metrics and weights from it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from models.files import replacing, sha256_of, size_of

Recipe = Mapping[str, str | int]


class Tensor(TypedDict):
    """One input or output; a dynamic dimension stands in `shape` under its name."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a builder found out about the file that it wrote."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One artifact. `weights`: trained, pretrained, random or local; None for a file that has none."""

    file: str
    sha256: str
    size_bytes: int
    weights: str | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    metrics: dict[str, float]
    libraries: dict[str, str]
    recipe: Recipe

    def describes(self, path: Path) -> bool:
        """Whether the file or folder is there, with the recorded size and content."""
        return path.exists() and size_of(path) == self.size_bytes and sha256_of(path) == self.sha256

    def made_by(self, recipe: Recipe, libraries: Iterable[str]) -> bool:
        """Whether this recipe would give the same file again.

        A library that is not installed cannot make a better file, so only those that are installed count.
        """
        return self.recipe == recipe and all(
            version == self.libraries.get(library) for library, version in installed(libraries).items()
        )


def installed(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of those that are installed, without importing any."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def load(path: Path) -> dict[str, Entry]:
    """The entries by artifact name. What is missing or unreadable is built again, so it is not an error."""
    try:
        raw = json.loads(path.read_text())["artifacts"].items()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    entries = {}
    for name, fields in raw:
        try:
            entries[name] = Entry(**fields)
        except TypeError:
            continue
    return entries


def save(path: Path, entries: Mapping[str, Entry]) -> None:
    document = {"artifacts": {name: asdict(entry) for name, entry in sorted(entries.items())}}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n")
