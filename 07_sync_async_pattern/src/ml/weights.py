"""Whether a model's weights mean anything, as the manifest says that models.build writes beside its models."""

import json
from pathlib import Path
from typing import Literal

Weights = Literal["pretrained", "random", "unknown"]


def weights_of(model_path: Path) -> Weights:
    """`random` or `pretrained` (also from a file that its builder was given); `unknown` without a manifest."""
    try:
        artifacts = json.loads((model_path.parent / "manifest.json").read_text())["artifacts"]
        [weights] = (entry["weights"] for entry in artifacts.values() if entry["file"] == model_path.name)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return "unknown"
    return "random" if weights == "random" else "pretrained"
