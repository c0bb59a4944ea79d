"""The models' manifest.json as services read it.

`models.manifest` writes it and has dataclasses of its own: the image that builds models installs none of this package.
"""

from pathlib import Path

from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes the one from typing only since Python 3.12


class Tensor(TypedDict):
    """One input or output of a model; `shape` has a name where a dimension is dynamic."""

    name: str
    dtype: str
    shape: list[int | str]


class ManifestEntry(BaseModel):
    """One file that models.build wrote. `weights`: trained, pretrained, random or local; None if it has none."""

    file: str
    weights: str | None = None
    inputs: list[Tensor] = []
    outputs: list[Tensor] = []
    metrics: dict[str, float] = {}


class _Manifest(BaseModel):
    artifacts: dict[str, ManifestEntry]


def read_manifest_entry(model_path: Path) -> ManifestEntry | None:
    """What the manifest.json in the model's folder records of this file; None if it is missing or malformed."""
    try:
        manifest = _Manifest.model_validate_json((model_path.parent / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return next((entry for entry in manifest.artifacts.values() if entry.file == model_path.name), None)
