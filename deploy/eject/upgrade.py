"""Merges what has changed upstream into a repository that eject.py wrote: `make upgrade FROM=../checkout`, run there.

Both states of upstream, at the time of the ejection and now, are ejected again and committed to a repository for the
moment, each by the eject.py of its own time. Git then applies their difference as it applies any commit: it keeps local
edits, follows renames, and marks the lines that both have changed.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deploy.eject.eject import RECORD, EjectError, checkout, git

USAGE = "usage: upgrade.py UPSTREAM, in the root of an ejected repository"


def main(arguments: list[str], here: Path) -> int:
    """Exit code: 0: merged; 1: conflicts are left to resolve, or a failure, explained on stderr."""
    try:
        if len(arguments) != 1:
            raise EjectError(USAGE)
        return upgrade(Path(arguments[0]), here)
    except (EjectError, OSError) as exc:
        sys.stderr.write(f"upgrade: {exc}\n")
        return 1


def upgrade(upstream: Path, here: Path) -> int:
    """Leave the merged files in the working tree and the index. Raises EjectError, with nothing changed."""
    record = here / RECORD
    if not record.is_file():
        raise EjectError(f"there is no {RECORD} here: {USAGE}")
    known = json.loads(record.read_text(encoding="utf-8"))
    if git(here, "status", "--porcelain"):
        raise EjectError("there are changes that are not committed; commit or stash them first")
    newest = git(upstream, "rev-parse", "HEAD").decode().strip()
    if newest == known["revision"]:
        print("Nothing to do: upstream is where it was.")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        both = Path(folder) / "both"
        git(Path(folder), "init", "--quiet", "both")
        for revision in (known["revision"], newest):
            empty(both)
            eject(upstream, revision, known["pattern"], both)
            if revision != newest:
                compare(both, known["files"])
            git(both, "add", "--all", "--force")
            author = ("-c", "user.name=upstream", "-c", "user.email=upstream@localhost", "-c", "commit.gpgsign=false")
            git(both, *author, "commit", "--quiet", "--no-verify", f"--message=Upgrade to {revision[:12]}")
        git(here, "fetch", "--quiet", str(both), "HEAD")
    merged = subprocess.run(["git", "cherry-pick", "--no-commit", "FETCH_HEAD"], cwd=here, check=False)
    print(git(here, "diff", "--stat", "HEAD").decode(), end="")
    print("Look at it, run `make test`, and commit; or take it back: git reset --hard")
    return merged.returncode and 1


def eject(upstream: Path, revision: str, number: str, folder: Path) -> None:
    """What that revision's own eject.py writes for that revision."""
    with tempfile.TemporaryDirectory() as source:
        checkout(upstream, revision, Path(source))
        program = Path(source) / "deploy/eject/eject.py"
        if not program.is_file():
            raise EjectError(f"{upstream} at {revision[:12]} has no deploy/eject")
        command: list[str | Path] = [sys.executable, program, "--tree", source, "--revision", revision, number, folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EjectError(done.stderr.strip().removeprefix("eject: "))


def empty(repository: Path) -> None:
    """Remove all files that are committed."""
    if git(repository, "ls-files"):
        git(repository, "rm", "-r", "--quiet", ".")


def compare(repository: Path, files: dict[str, dict[str, str]]) -> None:
    """Raise EjectError if a file is not what the record says: local edits would be taken for those of upstream."""
    for name, origin in files.items():
        path = repository / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != origin["sha256"]:
            raise EjectError(f"{name}: not the file that {RECORD} describes; is this the checkout it was ejected from?")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path.cwd()))
