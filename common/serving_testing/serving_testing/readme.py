"""Runs the curl lines of READMEs and compares the responses with those shown; generates their settings tables.

    python -m serving_testing.readme 06_horizontal_microservice_pattern --base http://localhost:9000=http://127.0.0.1:9123
    python -m serving_testing.readme --write 06_horizontal_microservice_pattern

An example is a ```bash block of curl lines, or one pipe into curl, followed by a ```json (or ```text) block with the
responses; or, in a ```console block, a line `$ curl …` and the JSON below it. `<!-- within 90 s -->` above an example
repeats it until the response is as shown, for at most 90 s. A settings table is between
`<!-- settings:src.configurations.ProxySettings -->` and `<!-- /settings -->`.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence, Set
    from re import Match

TIMEOUT_S = 60
RETRY_INTERVAL_S = 0.5
TOLERANCE = 1e-3

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
PROMPT = re.compile(r"^\$ +((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)  # a command and its output
CURL = re.compile(r"^ *(?:\$ +)?(?:.*\| *)?curl ", re.MULTILINE)
PIPED = re.compile(r"\|\s*curl ")
WITHIN = re.compile(r"<!-- within (\d+) s -->\s*$")
SETTINGS = re.compile(r"(<!-- settings:([\w.]+) -->\n)(.*?)(<!-- /settings -->)", re.DOTALL)
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")
# These differ from run to run: hexadecimal ids from six characters up, UUIDs, ISO 8601 times.
ID = re.compile(r"[0-9a-f]{6,}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?")


@dataclass(frozen=True)
class Example:
    """A block of commands of a README, as argument lists, and the block with their responses."""

    line: int
    commands: list[list[str]]
    language: str
    shown: str
    within_s: int = 0


def examples(text: str) -> Iterator[Example]:
    """The examples of a README.

    Raises:
        ValueError: a curl line has no response below it; the message has the line number.
    """
    for fence, after in pairwise([*FENCE.finditer(text), None]):
        if fence is not None and fence[1] == "console":
            yield from _console_examples(fence[2], text.count("\n", 0, fence.start()) + 2)
        if fence is None or fence[1] != "bash":
            continue
        if PIPED.search(fence[2]):
            commands = [["bash", "-c", fence[2]]]
        elif fence[2].lstrip().startswith("curl "):
            words = shlex.split(fence[2].replace("\\\n", " "), comments=True)
            starts = [i for i, word in enumerate(words) if word == "curl"]
            commands = [words[i:j] for i, j in pairwise([*starts, len(words)])]
        else:
            continue
        line = text.count("\n", 0, fence.start()) + 2
        if after is None or after[1] not in ("json", "text") or text[fence.end() : after.start()].strip():
            raise ValueError(f"line {line}: no ```json or ```text block follows this curl")
        within = WITHIN.search(text, 0, fence.start())
        yield Example(line, commands, after[1], after[2], int(within[1]) if within else 0)


def _console_examples(text: str, first_line: int) -> Iterator[Example]:
    """One example per curl line; the output of other programs is ignored."""
    for prompt in PROMPT.finditer(text):
        words = shlex.split(prompt[1].replace("\\\n", " "), comments=True)
        if words[:1] == ["curl"]:
            yield Example(first_line + text.count("\n", 0, prompt.start()), [words], "json", prompt[2])


def count_unchecked(text: str) -> int:
    """The number of curl lines outside of examples, whose responses nothing compares."""
    return len(CURL.findall(text)) - sum(len(example.commands) for example in examples(text))


def check_examples(
    readme: Path,
    bases: Mapping[str, str] | None = None,
    tolerance: float = TOLERANCE,
    *,
    skip_others: bool = False,
    varying: Mapping[str, Set[str]] | None = None,
) -> list[str]:
    """Run the README's curl lines; returns a description of each mismatch, with file, line and differences.

    Ids in a response replace the shown ids in later commands.

    Args:
        bases: maps a base URL, or any other text, of the README to its replacement.
        tolerance: the largest accepted difference between numbers.
        skip_others: skip the examples that use none of the bases.
        varying: by base URL, the keys whose values are compared by type only.
    """
    problems = []
    replacements = dict(bases or {})
    try:
        found = list(examples(readme.read_text(encoding="utf-8")))
    except ValueError as exc:
        return [f"{readme}: {exc}"]
    for example in found:
        command = " ".join(word for words in example.commands for word in words)
        if skip_others and not any(base in command for base in bases or {}):
            continue
        varying_keys = frozenset[str]().union(*(keys for base, keys in (varying or {}).items() if base in command))
        end = time.monotonic() + example.within_s
        while (
            differences := _check(example, readme.parent, tolerance, replacements, varying_keys)
        ) and time.monotonic() < end:
            time.sleep(RETRY_INTERVAL_S)
        if differences:
            commands = [words[-1].strip() if words[0] == "bash" else shlex.join(words) for words in example.commands]
            problems.append("\n    ".join([f"{readme}:{example.line}:", *commands, *differences]))
    return problems


def _check(
    example: Example, folder: Path, tolerance: float, replacements: dict[str, str], varying: Set[str]
) -> list[str]:
    try:
        answers = [_run([_replaced(word, replacements) for word in words], folder) for words in example.commands]
        return _differences(example, answers, tolerance, replacements, varying)
    except (OSError, ValueError, subprocess.SubprocessError, httpx.HTTPError) as exc:
        return [str(exc)]


def _replaced(word: str, replacements: Mapping[str, str]) -> str:
    # In one pass, because a replacement may itself be a key.
    shown = "|".join(map(re.escape, sorted(replacements, key=len, reverse=True)))
    return re.sub(rf"(?:{shown})(?!\w)", lambda found: replacements[found[0]], word) if replacements else word


def _run(words: list[str], folder: Path) -> str:
    """The output of a command. Without curl, httpx sends the request; it knows the options that READMEs use."""
    if words[0] == "curl":
        if not shutil.which("curl"):
            return _send(words[1:])
        words = ["curl", "--silent", "--show-error", "--max-time", str(TIMEOUT_S), *words[1:]]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=2 * TIMEOUT_S)
    if done.returncode:
        raise ValueError(done.stderr.strip() or f"{words[0]} ended with code {done.returncode}")
    return done.stdout


def _send(words: list[str]) -> str:
    parser = argparse.ArgumentParser(prog="curl", exit_on_error=False, allow_abbrev=False, add_help=False)
    parser.add_argument("url")
    parser.add_argument("-s", "--silent", action="store_true")
    parser.add_argument("-X", "--request")
    parser.add_argument("-H", "--header", action="append", default=[])
    parser.add_argument("-d", "--data")
    options, unknown = parser.parse_known_args(words)
    if unknown:
        raise ValueError(f"without the program curl, {' '.join(unknown)} cannot be sent")
    headers = dict(header.split(": ", 1) for header in options.header)
    if options.data is not None:
        headers = {"Content-Type": "application/x-www-form-urlencoded"} | headers
    method = options.request or ("GET" if options.data is None else "POST")
    return httpx.request(
        method, options.url, headers=headers, content=options.data, timeout=TIMEOUT_S, trust_env=False
    ).text


def _differences(
    example: Example, answers: list[str], tolerance: float, replacements: dict[str, str], varying: Set[str]
) -> list[str]:
    if example.language == "text":
        shown, got = (NUMBER.sub("#", text).strip() for text in (example.shown, "\n".join(answers)))
        return [] if shown == got else [f"shown: {example.shown.strip()}", f"got:   {' '.join(answers).strip()}"]
    shown_answers = list(_json_documents(example.shown))
    if len(shown_answers) != len(answers):
        return [f"{len(answers)} curl commands, but {len(shown_answers)} answers are shown"]
    return [
        difference
        for shown_answer, answer in zip(shown_answers, answers, strict=True)
        for difference in compare(shown_answer, _loads(answer), tolerance, replacements, varying=varying)
    ]


def _json_documents(text: str) -> Iterator[object]:
    decoder, position = json.JSONDecoder(), 0
    while text[position:].strip():
        position += len(text[position:]) - len(text[position:].lstrip())
        document, position = decoder.raw_decode(text, position)
        yield document


def _loads(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"the answer is not JSON: {text[:200]!r}") from None


def compare(
    shown: object,
    got: object,
    tolerance: float = TOLERANCE,
    replacements: dict[str, str] | None = None,
    where: str = "answer",
    *,
    varying: Set[str] = frozenset(),
) -> Iterator[str]:
    """The differences between the shown and the actual response: keys, types, strings, numbers beyond the tolerance.

    Two ids are equal, and so are two times. `replacements` gets each shown id with the actual one, also whole numbers
    under the key `id`, for the paths that end in them.
    """
    replacements = {} if replacements is None else replacements
    if isinstance(shown, dict) and isinstance(got, dict):
        yield from _compare_keys(shown, got, tolerance, replacements, where, varying)
    elif isinstance(shown, list) and isinstance(got, list):
        if len(shown) != len(got):
            yield f"{where}: {len(shown)} items shown, got {len(got)}"
        for i, (one, other) in enumerate(zip(shown, got, strict=False)):
            yield from compare(one, other, tolerance, replacements, f"{where}[{i}]", varying=varying)
    elif not _matches(shown, got, tolerance):
        yield f"{where}: shown {json.dumps(shown)}, got {json.dumps(got)}"
    elif isinstance(shown, str) and isinstance(got, str) and ID.fullmatch(shown):
        replacements[shown] = got


def _compare_keys(
    shown: Mapping[str, object],
    got: Mapping[str, object],
    tolerance: float,
    replacements: dict[str, str],
    where: str,
    varying: Set[str],
) -> Iterator[str]:
    unmatched = [key for key in got if key not in shown]
    for key, value in shown.items():
        # An id can also be a key: a shown id matches the next actual id that is not shown.
        actual = key if key in got else next((other for other in unmatched if _matches(key, other, tolerance)), None)
        if actual is None:
            yield f"{where}.{key}: shown, but missing"
            continue
        if actual != key:
            unmatched.remove(actual)
            replacements[key] = actual
        if key in varying and type(value) is type(got[actual]):
            continue
        if key == "id" and isinstance(value, int) and isinstance(got[actual], int):
            replacements[f"/{value}"] = f"/{got[actual]}"  # the database has since counted on
            continue
        yield from compare(value, got[actual], tolerance, replacements, f"{where}.{key}", varying=varying)
    for key in unmatched:
        yield f"{where}.{key}: not shown, got {json.dumps(got[key])}"


def _matches(shown: object, got: object, tolerance: float) -> bool:
    if isinstance(shown, bool) or isinstance(got, bool):
        return shown is got
    if isinstance(shown, int | float) and isinstance(got, int | float):
        return abs(shown - got) <= tolerance
    if isinstance(shown, str) and isinstance(got, str):
        return shown == got or any(kind.fullmatch(shown) and kind.fullmatch(got) for kind in (ID, TIME))
    return shown is None and got is None


def with_current_tables(readme: Path) -> str:
    """The README's text with every settings table generated anew from the class, imported from the README's folder."""

    def fill(found: Match[str]) -> str:
        command = [sys.executable, str(Path(__file__).with_name("settings_table.py")), found[2]]
        done = subprocess.run(command, cwd=readme.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"{readme}: no settings table of {found[2]}:\n{done.stderr}")
        return f"{found[1]}{done.stdout}{found[4]}"

    return SETTINGS.sub(fill, readme.read_text(encoding="utf-8"))


def has_current_tables(readme: Path) -> bool:
    """Whether the settings tables of the README equal those generated from the classes."""
    return readme.read_text(encoding="utf-8") == with_current_tables(readme)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 1 if a README shows a wrong response or an outdated table, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder with README files")
    parser.add_argument("--write", action="store_true", help="generate the settings tables; run nothing")
    parser.add_argument("--base", action="append", default=[], metavar="SHOWN=ACTUAL", help="base URL to use instead")
    parser.add_argument("--skip-others", action="store_true", help="run only examples that use one of these bases")
    options = parser.parse_args(argv)
    bases = dict(base.split("=", 1) for base in options.base)
    problems = []
    for readme in sorted(path for folder in options.folders for path in folder.glob("README*.md")):
        if options.write:
            readme.write_text(with_current_tables(readme), encoding="utf-8")
        else:
            problems += check_examples(readme, bases, skip_others=options.skip_others)
            if not has_current_tables(readme):
                problems.append(
                    f"{readme}: a settings table is out of date: python -m serving_testing.readme --write ..."
                )
    print("\n".join(problems) or "All READMEs are correct.")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
