"""The file VERSION holds the version of the whole repository; everything that repeats it is compared with it.

python -m scripts.checks.version            lists what differs; exit code 1 if anything does
python -m scripts.checks.version --write    writes VERSION's content everywhere
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Where it is repeated: the metadata of each distribution, the OpenAPI documents, the tags of the images.
REPEATED = {
    "common/*/pyproject.toml": r'^version = "(.*)"$',
    "models/pyproject.toml": r'^version = "(.*)"$',
    "[0-9][0-9]_*_pattern/pyproject.toml": r'^version = "(.*)"$',
    "common/serving_common/serving_common/service.py": r'\bversion="(.*?)"',
    "[0-9][0-9]_*_pattern/docker-compose.yml": r"\$\{IMAGE_TAG:-(.*?)\}",
    "[0-9][0-9]_*_pattern/Dockerfile*": r"\bARG VERSION=(\S+)",
}


def differing(root: Path = ROOT, *, write: bool = False) -> list[str]:
    """The files, relative to `root`, that name another version, or none where one is expected."""
    version = (root / "VERSION").read_text(encoding="utf-8").strip()
    found = []
    for pattern, expression in REPEATED.items():
        for path in sorted(root.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            versions = re.findall(expression, text, re.MULTILINE)
            if set(versions) - {version} or (not versions and path.suffix != "" and "Dockerfile" not in path.name):
                found.append(path.relative_to(root).as_posix())
            if write:
                spliced = re.sub(expression, lambda at: at[0].replace(at[1], version), text, flags=re.MULTILINE)
                path.write_text(spliced, encoding="utf-8")
    return found


def main() -> int:
    """Exit code: 1 if a file differed and was not written."""
    write = "--write" in sys.argv[1:]
    found = differing(write=write)
    print("\n".join(found) or "VERSION is the version everywhere.")
    return 0 if write or not found else 1


if __name__ == "__main__":
    sys.exit(main())
