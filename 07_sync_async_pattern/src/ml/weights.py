"""Whether a model's labels mean anything: which weights models.build gave it."""

from pathlib import Path
from typing import Literal

from serving_common.manifest import read_manifest_entry

Weights = Literal["pretrained", "random", "unknown"]


def weights_of(model_path: Path) -> Weights:
    """`random`; `pretrained`, also for a file that was given to models.build; `unknown` without a manifest entry."""
    entry = read_manifest_entry(model_path)
    if entry is None or entry.weights is None:
        return "unknown"
    return "random" if entry.weights == "random" else "pretrained"
