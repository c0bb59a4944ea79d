"""Writes the measured figures of all READMEs and pages from the committed results: `python -m scripts.checks.figures`.

Figures stand between `<!-- figures:NAME -->` and `<!-- /figures -->`. The texts of the blocks are templates in
blocks/*.en.txt and, for *.ja.md, blocks/*.ja.txt. Their placeholders are `{pattern|row|column}` of bench.json
(`{04/SQLite|job, * rows|rate}` where a row is in two tables, `all` for the comparison of all patterns; a fourth part
names another field than the value), `{ledger|pattern|what}` of ledger.json, and `{swarm|what}`, `{containers|what}`,
`{profile|what}` and `{cost|what}` of the files of that name. An empty part repeats that of the placeholder before. With
--write the blocks are rewritten; without it, those that differ are listed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from re import Match

ROOT = Path(__file__).parents[2]
BLOCKS = Path(__file__).parent / "blocks"
BLOCK = re.compile(r"(<!-- figures:([\w:-]+) -->\n)(.*?)(<!-- /figures -->)", re.DOTALL)
PLACEHOLDER = re.compile(r"\{([^{}\n]*\|[^{}\n]*)\}")
NAMED_TARGETS = 3  # a fault with more of them is listed without


class Results:
    """The committed results of `make bench`, `make prove` and the benchmarks with a command of their own."""

    def __init__(self, root: Path = ROOT) -> None:
        bench = json.loads((root / "docs/bench/bench.json").read_text(encoding="utf-8"))
        self._tables = {"all": bench["side_by_side"]["measurements"], **bench["patterns"]}
        self._losses = json.loads((root / "docs/prove/ledger.json").read_text(encoding="utf-8"))
        self._others = {
            Path(name).stem: json.loads((root / f"docs/{name}.json").read_text(encoding="utf-8"))
            for name in ("prove/swarm", "prove/containers", "bench/profile", "traces/cost")
        }

    def render(self, template: str) -> str:
        """The template with all placeholders filled in. Raises ValueError for what was not measured."""
        before: list[str] = []

        def fill(found: Match[str]) -> str:
            nonlocal before
            parts = found[1].split("|")
            before = [part or before[i] for i, part in enumerate(parts[:3])]
            if before[0] == "ledger":
                return self._from_ledger(*before[1:])
            if before[0] in self._others:
                fact = self._others[before[0]][before[1]]
                return (
                    "\n".join(fact) if isinstance(fact, list) else f"{fact:,}" if isinstance(fact, int) else str(fact)
                )
            return _digits(self._measured(*before)[parts[3] if len(parts) > 3 else "value"])

        return PLACEHOLDER.sub(fill, template)

    def _measured(self, table: str, what: str, measure: str) -> dict[str, Any]:
        number, _, group = table.partition("/")
        for each in self._tables.get(number, []):
            if each["measure"] == measure and group in ("", each["group"]) and fnmatchcase(each["what"], what):
                found: dict[str, Any] = each
                return found
        raise ValueError(f"docs/bench/bench.json has no {table}|{what}|{measure}: run `make bench` for all patterns")

    def _from_ledger(self, number: str, what: str) -> str:
        runs = self._losses["patterns"]
        if number == "all":
            if what == "rows":
                return "\n".join(map(_ledger_row, runs))
            minutes = f"{sum(run['seconds'] for run in runs) / 60:.0f}"
            return minutes if what == "minutes" else str(self._losses[what])
        run = next((run for run in runs if run["pattern"] == number), None)
        if run is None:
            raise ValueError(f"docs/prove/ledger.json has no pattern {number}: run `make prove` for all patterns")
        if what == "completed":
            return f"{run['accepted'] - run['lost'] - run['stuck']:,}"
        return f"{run[what] if what in run else sum(run['faults'][what].values()):,}"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ledger_row(run: dict[str, Any]) -> str:
    faults = [
        f"{sum(targets.values())} {fault}" + f" ({', '.join(targets)})" * (len(targets) <= NAMED_TARGETS)
        for fault, targets in run["faults"].items()
    ]
    zeros = (run[column] for column in ("lost", "done_twice", "stuck", "failed_answers"))
    cells = [f"{run['pattern']} {run['title']}", ", ".join(faults), f"{run['accepted']:,} {run['unit']}"]
    cells += ["-" if zero is None else f"**{zero}**" for zero in zeros]
    return f"| {' | '.join(cells)} | {run['worst_recovery_s'] or float('inf'):.1f} s |"


def templates(language: str) -> dict[str, str]:
    """The templates of a language, by name; the root's table of patterns has the row of every pattern."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(BLOCKS.glob(f"*.{language}.txt"))]
    found = {block[2]: block[3] for text in texts for block in BLOCK.finditer(text)}
    rows = [found.pop(name) for name in sorted(found) if name.startswith("row:")]
    return found | {"root:patterns": "".join([found["root:patterns"], *rows])}


def pages(root: Path = ROOT) -> list[Path]:
    """All Markdown files of the repository."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=root, capture_output=True, text=True, check=True).stdout
    return [root / name for name in listed.splitlines() if (root / name).is_file()]


def with_current_blocks(page: Path, results: Results) -> str:
    """The page's text with every block rendered anew. Raises ValueError for a block that has no template."""
    known = templates("ja" if page.name.endswith(".ja.md") else "en")

    def fill(found: Match[str]) -> str:
        if found[2] not in known:
            raise ValueError(f"{page}: there is no template of figures:{found[2]}")
        return f"{found[1]}{results.render(known[found[2]])}{found[4]}"

    return BLOCK.sub(fill, page.read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Exit code: 0 if every block agrees with the results, or has been written; 1 if not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="rewrite the blocks")
    options = parser.parse_args(argv)
    try:
        results = Results(root)
        current = {page: with_current_blocks(page, results) for page in pages(root)}
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 1
    stale = [page for page, text in current.items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        if options.write:
            page.write_text(current[page], encoding="utf-8")
        print(f"{'written' if options.write else 'out of date'}: {page.relative_to(root)}")
    return 1 if stale and not options.write else 0


if __name__ == "__main__":
    sys.exit(main())
