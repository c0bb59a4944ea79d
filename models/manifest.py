"""manifest.json records what was built, from which recipe, with which versions. Services read metrics and weights."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from models.files import replacing, sha256_of, size_of

Recipe = Mapping[str, str | int]


class Tensor(TypedDict):
    """One input or output; `shape` names each dynamic dimension."""

    name: str
    dtype: str
    shape: list[int | str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a builder reports about the file it wrote."""

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
        """Whether the file or folder exists with the recorded size and content."""
        return path.exists() and size_of(path) == self.size_bytes and sha256_of(path) == self.sha256

    def made_by(self, recipe: Recipe, libraries: Collection[str]) -> bool:
        """Whether this recipe would produce the same file again.

        Where a library is missing, as TensorFlow is for a demo, nothing better can be built: then no version counts.
        """
        found = installed(libraries)
        is_buildable = len(found) == len(libraries)
        return self.recipe == recipe and (
            not is_buildable or all(version == self.libraries.get(library) for library, version in found.items())
        )


def installed(libraries: Iterable[str]) -> dict[str, str]:
    """The versions of the installed ones among these, without importing them."""
    versions = {}
    for library in libraries:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions


def load(path: Path) -> dict[str, Entry]:
    """The entries by artifact name. A missing or unreadable manifest is not an error: the artifacts are built again."""
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
