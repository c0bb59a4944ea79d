"""Files that are generated and committed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


def keep(wanted: Mapping[Path, str], folder: Path, pattern: str, arguments: Sequence[str]) -> int:
    """With --write, make the files of this pattern in the folder the wanted ones. Exit code: 1 if they are not."""
    if "--write" in arguments:
        for stale in set(folder.glob(pattern)) - wanted.keys():
            stale.unlink()
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
    return int({path: path.read_text(encoding="utf-8") for path in folder.glob(pattern)} != wanted)
