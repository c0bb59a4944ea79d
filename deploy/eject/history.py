"""Upgrades an ejected pattern through this repository's own history: `make prove PROVE=upgrades`.

A pattern is ejected as it was some commits ago, five of its files are edited in many places, and the commits that have
changed it since are merged one after the other. After each, every edit must still be there, what is left without the
edits must be what upstream is now, and files may be in conflict only where both have changed the same lines.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from difflib import SequenceMatcher
from pathlib import Path

from deploy.eject.eject import RECORD, ROOT, EjectError, checkout, git
from deploy.eject.upgrade import eject

FILES, EDITS_PER_FILE = 5, 10
COMMENTED = (".py", ".sh", ".toml", ".yml", ".md")
EDIT = re.compile(r"^# mine \d+\n|  # mine \d+$", re.MULTILINE)
CONFLICT = re.compile(r"^<{7} .*\n([\s\S]*?)^\|{7} .*\n[\s\S]*?^={7}\n([\s\S]*?)^>{7} .*\n", re.MULTILINE)
HEAD = """| commit | files changed | in conflict | of them needlessly | edits lost | files unlike upstream |
|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Upgrade:
    """What came of one commit; of the files, how many."""

    subject: str
    changed: int
    in_conflict: int
    needlessly: int
    edits_lost: int
    unlike_upstream: int

    @property
    def is_right(self) -> bool:
        return not (self.needlessly or self.edits_lost or self.unlike_upstream)


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 0: all upgrades are right; 1: one is not, or a failure, explained by one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="03", metavar="NN")
    parser.add_argument("--commits", type=int, default=10, metavar="N")
    parser.add_argument("--output", help="any value also writes the table into docs/eject.md")
    options = parser.parse_args(arguments)
    print(HEAD, flush=True)
    table, is_right = HEAD, True
    try:
        with tempfile.TemporaryDirectory() as folder:
            for upgrade in upgrades_of(root, options.pattern, options.commits, Path(folder)):
                line = f"| {' | '.join(map(str, astuple(upgrade)))} |"
                print(line, flush=True)
                table, is_right = f"{table}\n{line}", is_right and upgrade.is_right
    except (EjectError, OSError) as exc:
        sys.stderr.write(f"history: {exc}\n")
        return 1
    if options.output:
        write_block(root, "upgrades", table)
    return 0 if is_right else 1


def write_block(root: Path, name: str, table: str) -> None:
    """Put the table between the marks of this name in docs/eject.md and its translation."""
    block = re.compile(rf"(<!-- prove:{name} -->\n)[\s\S]*?(<!-- /prove -->)")
    for page in (root / "docs/eject.md", root / "docs/eject.ja.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(block.sub(lambda found: f"{found[1]}{table}\n{found[2]}", text), encoding="utf-8")


def upgrades_of(root: Path, number: str, count: int, folder: Path) -> Iterator[Upgrade]:
    """The upgrades to the last `count` commits that have changed what the pattern takes along."""
    upstream, own = folder / "upstream", folder / "own"
    git(folder, "clone", "--quiet", str(root), str(upstream))
    eject(upstream, "HEAD", number, folder / "newest")
    sources = {origin["from"] for origin in recorded(texts(folder / "newest")).values()}
    listed = git(upstream, "log", f"--max-count={count}", "--format=%H", "--reverse", "--", *sources)
    revisions = listed.decode().split()
    eject(upstream, git(upstream, "rev-parse", f"{revisions[0]}^").decode().strip(), number, own)
    git(own, "init", "--quiet")
    git(own, "config", "merge.conflictStyle", "diff3")
    commit(own)
    before = texts(own)
    edits = edit(own, most_changed(upstream, revisions, before))
    for revision in revisions:
        git(upstream, "checkout", "--quiet", revision)
        upgrade, before = upgraded(upstream, own, edits, before, folder / revision)
        yield upgrade


def texts(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="latin-1") for path in paths}


def recorded(tree: Mapping[str, str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads(tree[RECORD])["files"]
    return found


def most_changed(upstream: Path, revisions: Sequence[str], tree: Mapping[str, str]) -> list[str]:
    """The files that most of these commits change."""
    names = {origin["from"]: name for name, origin in recorded(tree).items() if name.endswith(COMMENTED)}
    listed = git(upstream, "show", "--format=", "--name-only", *revisions).decode().splitlines()
    counts = Counter(names[source] for source in listed if source in names)
    return [name for name, _ in counts.most_common(FILES)]


def commit(repository: Path) -> None:
    git(repository, "add", "--all", "--force")
    author = ("-c", "user.name=owner", "-c", "user.email=owner@localhost", "-c", "commit.gpgsign=false")
    git(repository, *author, "commit", "--quiet", "--no-verify", "--message=Next")


def edit(own: Path, names: Sequence[str]) -> set[str]:
    """Edit these files in places all over them: by turns a line of its own, and the end of a line. The edits."""
    count = 0
    for name in names:
        lines = (own / name).read_text(encoding="utf-8").split("\n")
        for at in range(len(lines) - 2, 0, -max(1, len(lines) // EDITS_PER_FILE)):
            count += 1
            lines[at] += f"\n# mine {count}" if count % 2 else f"  # mine {count}"
        (own / name).write_text("\n".join(lines), encoding="utf-8")
    commit(own)
    return {f"# mine {number + 1}" for number in range(count)}


def upgraded(
    upstream: Path, own: Path, edits: set[str], before: Mapping[str, str], folder: Path
) -> tuple[Upgrade, dict[str, str]]:
    """Upgrade, resolve the conflicts as upstream has it with the edits below, and commit; also what upstream has now.

    Args:
        before: what upstream had.
        folder: for what it has now, as upgrade.py has fetched it.
    """
    mine = texts(own)
    program = ROOT / "deploy/eject/upgrade.py"
    done = subprocess.run([sys.executable, program, upstream], cwd=own, capture_output=True, text=True, check=False)
    conflicts = git(own, "diff", "--name-only", "--diff-filter=U").decode().splitlines()
    if done.returncode != bool(conflicts):
        raise EjectError(f"upgrade.py returns {done.returncode}: {done.stdout}{done.stderr}")
    checkout(own, "FETCH_HEAD", folder)
    after = texts(folder)
    for name in conflicts:
        text = (own / name).read_text(encoding="utf-8")
        (own / name).write_text(CONFLICT.sub(resolved, text), encoding="utf-8")
    commit(own)
    merged = texts(own)
    upgrade = Upgrade(
        subject=git(upstream, "show", "--no-patch", "--format=%h %s").decode().strip().replace("|", "/"),
        changed=sum(before.get(name) != after.get(name) for name in {*before, *after} - {RECORD}),
        in_conflict=len(conflicts),
        needlessly=sum(not meet(before[name], mine[name], after[name]) for name in conflicts),
        edits_lost=len(edits - {found.strip() for text in merged.values() for found in EDIT.findall(text)}),
        unlike_upstream=sum(
            after.get(name) != (EDIT.sub("", merged[name]) if name in merged else None) for name in {*after, *merged}
        ),
    )
    return upgrade, after


def resolved(conflict: re.Match[str]) -> str:
    """Their lines, and below them the owner's edits."""
    return conflict[2] + "".join(f"{found.strip()}\n" for found in EDIT.findall(conflict[1]))


def meet(before: str, mine: str, theirs: str) -> bool:
    """Whether both have changed the same lines, or lines next to each other, which git takes for the same."""
    ours, others = changed_lines(before, mine), changed_lines(before, theirs)
    return any(start <= other_end and other_start <= end for start, end in ours for other_start, other_end in others)


def changed_lines(before: str, after: str) -> list[tuple[int, int]]:
    """First and last, exclusive, of the lines that an edit replaces; the same twice where it adds some."""
    matcher = SequenceMatcher(None, before.split("\n"), after.split("\n"), autojunk=False)
    return [(start, end) for kind, start, end, _, _ in matcher.get_opcodes() if kind != "equal"]


if __name__ == "__main__":
    sys.exit(main())
