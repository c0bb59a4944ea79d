"""Compares everything that repeats the repository's version with the file VERSION; `--write` updates it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = r'^version = "(.*)"$'
# The metadata of each distribution, the OpenAPI documents, the tags and labels of the images.
REPEATED = {
    "common/*/pyproject.toml": PROJECT,
    "models/pyproject.toml": PROJECT,
    "[0-9][0-9]_*_pattern/pyproject.toml": PROJECT,
    "common/serving_common/serving_common/service.py": r'\bversion="(.*?)"',
    "common/*/deploy/*.yaml": r"^ +image: .*:(.*)$",
    "[0-9][0-9]_*_pattern/docker-compose.yml": r"\$\{IMAGE_TAG:-(.*?)\}",
}


def differing(root: Path = ROOT, *, write: bool = False) -> list[str]:
    """The files, relative to `root`, that have another version or none."""
    version = (root / "VERSION").read_text(encoding="utf-8").strip()
    found = []
    for pattern, expression in REPEATED.items():
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if set(re.findall(expression, text, re.MULTILINE)) != {version}:
                found.append(path.relative_to(root).as_posix())
                if write:
                    new = re.sub(expression, lambda at: at[0].replace(at[1], version), text, flags=re.MULTILINE)
                    path.write_text(new, encoding="utf-8")
    return found


if __name__ == "__main__":
    print("\n".join(differing(write="--write" in sys.argv)) or "VERSION is the version everywhere.")
