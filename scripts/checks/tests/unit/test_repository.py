"""The layout of the repository: words, imports, class names, READMEs, sizes, one version."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from scripts.checks.version import differing
from serving_testing.readme import SETTINGS, examples

ROOT = Path(__file__).parents[4]

# Coined words, each with a term of the field that replaced it; also rejected with a leading underscore.
WORDS = """
    Places insist at_work pause Notices or_unavailable keep_alive leave silent give_back suspect unheld _recover dead
    replay purge Kind documented Origin Call ask probe ask_all look note_sync register _promise _kept _let_redis_rest
    mend NoProcess become_child LostToAnother Found Supervised needs prove Proof forgives told ledger floor rival
    Entrance Figure Form max_bodies_bytes
"""
REJECTED = frozenset(WORDS.split())
# The same for words that are rejected in one place only: file pattern, definition.
REJECTED_IN = {
    ("[0-9][0-9]_*_pattern/src/*", "max_waiting"),  # max_in_flight; MicroBatcher.max_waiting is the bound of a queue
    ("04_batch_pattern/*", "locks"),  # transaction(write=)
}
SCRIPT_DEFINITION = {
    ".lua": re.compile(r"\bfunction\s+([\w.:]+)|\blocal\s+(\w+)"),
    ".sh": re.compile(r"^\s*(?:function\s+)?(\w+)\s*\(\)|^\s*(?:local\s+)?(\w+)=", re.MULTILINE),
    ".js": re.compile(r"\bfunction\s*\*?\s*(\w+)|\b(?:const|let|var|class)\s+(\w+)"),
    ".html": re.compile(r"\bfunction\s*\*?\s*(\w+)|\b(?:const|let|var|class)\s+(\w+)"),
}

# What each room may import of this repository besides itself. Its tests may import more.
MAY_IMPORT = {
    "patterns": {"serving_common", "tfserving_protos"},
    "models": set(),
    "common/serving_common": set(),
    "common/serving_testing": {"serving_common"},
    "common/tfserving_protos": set(),
    "common/model_server": {"serving_common", "tfserving_protos"},
    "scripts/devstack": {"serving_common", "serving_testing"},
    "scripts/benchmarks": {"scripts.devstack", "serving_common", "serving_testing", "tfserving_protos"},
    "scripts/chaos": {"scripts.devstack", "serving_common", "serving_testing", "tfserving_protos"},
    "deploy/swarm": {"scripts.devstack", "scripts.chaos"},
    "scripts/checks": {"scripts.devstack", "serving_common", "serving_testing"},
    "deploy/eject": set(),
    "deploy/observability": {"scripts.devstack", "scripts.chaos", "serving_common", "serving_testing"},
}
OWN_TOPS = {
    "src",
    "client",
    "build_model",
    "serving_common",
    "serving_testing",
    "tfserving_protos",
    "model_server",
    "models",
}
# (file, import): reason.
IMPORT_EXCEPTIONS: dict[tuple[str, str], str] = {
    ("models/add.py", "serving_common"): "a card is checked by the code that the services check it with",
    ("models/images.py", "serving_common"): "the same",
}

# Classes that several modules define under one name: the meaning is the same in each.
SHARED_CLASS_NAMES = {
    "QueueSettings": "the queue settings of a pattern",
    "ProxySettings": "the settings of a pattern's proxy",
    "WorkerSettings": "the settings of a pattern's worker",
    "PredictRequest": "the body of a pattern's POST /predict",
    "PredictResponse": "the response to a pattern's POST /predict",
    "Health": "the response to GET /health",
    "Metadata": "the response to GET /metadata",
    "Tensor": "one input or output of a model in manifest.json: for its builder, and for its readers",
}


@functools.cache
def tracked(suffix: str = "") -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    paths = [ROOT / name for name in listed.split("\0") if name.endswith(suffix) and name]
    return [path for path in paths if path.is_file()]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_test(path: Path) -> bool:
    return "tests" in path.relative_to(ROOT).parts


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def python_definitions(module: ast.Module):
    """(name, line) of every function, class, parameter, variable, attribute and import alias that is defined."""
    for node in ast.walk(module):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name, node.lineno
            case ast.arg(arg=name):
                yield name, node.lineno
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield name, node.lineno
            case ast.alias(asname=str(name)) | ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield name, node.lineno


def definitions(path: Path):
    if path.suffix == ".py":
        yield from python_definitions(tree(path))
    elif expression := SCRIPT_DEFINITION.get(path.suffix):
        text = path.read_text(encoding="utf-8")
        for found in expression.finditer(text):
            name = next(group for group in found.groups() if group)
            yield re.split(r"[.:]", name)[-1], text.count("\n", 0, found.start()) + 1


def test_coined_words_are_not_defined():
    rejected = []
    for path in tracked():
        for name, line in definitions(path):
            names = {name, name.lstrip("_")}
            if names & REJECTED or any(path.match(where) and word in names for where, word in REJECTED_IN):
                rejected.append(f"{relative(path)}:{line}: {name}")
    assert rejected == []


def room(path: Path) -> str | None:
    first, second, *_ = (*path.relative_to(ROOT).parts, "")
    if re.fullmatch(r"\d\d_\w+_pattern", first):
        return "patterns"
    return first if first == "models" else f"{first}/{second}"


def imported(module: ast.Module):
    for node in ast.walk(module):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom(module=str(name), level=0):
                # `from scripts import devstack` imports the room, `from models.build import main` the module.
                yield from (f"{name}.{alias.name}" for alias in node.names)


def unit(name: str) -> str | None:
    """The room that an import enters; None for what is not this repository's."""
    top, second, *_ = (*name.split("."), "", "")
    if top in ("scripts", "deploy"):
        return f"{top}.{second}"
    return top if top in OWN_TOPS else None


def own_units(path: Path) -> set[str]:
    where = room(path) or ""
    # 02 has client and build_model.py where the others have src. Only a pattern's own folder is on its path.
    return (
        {"src", "client", "build_model"} if where == "patterns" else {where.replace("/", "."), where.rpartition("/")[2]}
    )


@pytest.mark.parametrize("where", MAY_IMPORT)
def test_a_room_imports_only_from_rooms_below_it(where):
    wrong = []
    for path in tracked(".py"):
        if room(path) != where or is_test(path):
            continue
        allowed = MAY_IMPORT[where] | own_units(path)
        for name in imported(tree(path)):
            entered = unit(name)
            if entered and entered not in allowed and (relative(path), entered) not in IMPORT_EXCEPTIONS:
                wrong.append(f"{relative(path)} imports {name}")
    assert wrong == []


def test_every_python_file_is_in_a_room():
    assert {room(path) for path in tracked(".py")} == MAY_IMPORT.keys()


def test_only_its_own_tests_import_a_pattern():
    wrong = [
        relative(path)
        for path in tracked(".py")
        if room(path) != "patterns"
        for name in imported(tree(path))
        if unit(name) in {"src", "client", "build_model"} and (relative(path), unit(name)) not in IMPORT_EXCEPTIONS
    ]
    assert wrong == []


def test_tests_of_a_pattern_do_not_import_scripts():
    wrong = [
        f"{relative(path)} imports {name}"
        for path in tracked(".py")
        if room(path) in {"patterns", "common/serving_common", "common/serving_testing"}
        for name in imported(tree(path))
        if (unit(name) or "").startswith("scripts.")
    ]
    assert wrong == []


def test_a_class_name_has_one_meaning():
    places = defaultdict(set)
    for path in tracked(".py"):
        if not is_test(path):
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.ClassDef):
                    places[node.name].add(f"{relative(path)}:{node.lineno}")
    repeated = {name: sorted(found) for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in repeated.items() if name not in SHARED_CLASS_NAMES} == {}
    assert SHARED_CLASS_NAMES.keys() - repeated.keys() == set(), "allowed, but not needed any more"


def lines_of(paths) -> int:
    return sum(path.read_text(encoding="utf-8").count("\n") for path in paths)


def code_of(folder: str):
    return [
        path
        for path in tracked()
        if path.is_relative_to(ROOT / folder) and path.suffix in {".py", ".sh"} and not is_test(path)
    ]


@pytest.mark.parametrize(("folder", "limit"), [("scripts", 10_850), ("02_synchronous_pattern", 600)])
def test_a_folder_stays_small(folder, limit):
    assert lines_of(code_of(folder)) < limit


def test_the_top_of_scripts_holds_only_shell():
    files = {path.name for path in tracked() if path.parent == ROOT / "scripts"}
    assert {name for name in files if not name.endswith(".sh")} == {"README.md"}


def test_the_root_holds_the_patterns_and_few_folders():
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    visible = {name for name in folders if not name.startswith(".") and not re.fullmatch(r"\d\d_\w+_pattern", name)}
    assert visible <= {"common", "deploy", "docs", "models", "scripts"}


ROOMS = sorted(
    [
        *(path.parent for path in ROOT.glob("common/*/pyproject.toml")),
        *(path.parent for room in ("scripts", "deploy") for path in ROOT.glob(f"{room}/*/__init__.py")),
        *(ROOT / name for name in ("common", "deploy", "docs", "models", "scripts")),
    ]
)


@pytest.mark.parametrize("folder", [*ROOMS, *sorted(ROOT.glob("[0-9][0-9]_*_pattern"))], ids=relative)
def test_a_folder_has_a_readme(folder):
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "where to start reading" in text.lower()
    if folder in ROOMS:
        assert text.count("\n") <= 40


def before_reference(name: str, heading: str) -> str:
    text = (ROOT / name).read_text(encoding="utf-8")
    before, found, _ = text.partition(f"\n{heading}\n")
    assert found, f"{name} has no section {heading!r}"
    return before


def test_the_readme_has_at_most_700_words_before_its_reference():
    assert len(before_reference("README.md", "## Reference").split()) <= 700


def test_the_japanese_readme_has_at_most_2200_characters_before_its_reference():
    assert len(before_reference("README.ja.md", "## リファレンス")) <= 2200


def test_version_is_the_same_everywhere():
    assert differing() == []
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    assert f"\n## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_version_is_written_everywhere(tmp_path):
    (tmp_path / "VERSION").write_text("2.0.0\n")
    (tmp_path / "06_x_pattern").mkdir()
    compose, project = tmp_path / "06_x_pattern/docker-compose.yml", tmp_path / "06_x_pattern/pyproject.toml"
    compose.write_text("image: a:${IMAGE_TAG:-1.9.0}\nimage: b:${IMAGE_TAG:-1.9.0}\n")
    project.write_text('name = "x"\nversion = "1.9.0"\nrequires = ["y>=1.9.0"]\n')
    names = ["06_x_pattern/docker-compose.yml", "06_x_pattern/pyproject.toml"]
    assert sorted(differing(tmp_path)) == names
    assert sorted(differing(tmp_path, write=True)) == names
    assert differing(tmp_path) == []
    assert compose.read_text().count("2.0.0") == 2
    assert project.read_text() == 'name = "x"\nversion = "2.0.0"\nrequires = ["y>=1.9.0"]\n'


LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)|!\[[^\]\n]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    """The anchors of a Markdown file's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", tracked(".md"), ids=relative)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for found in LINK.finditer(text):
        target = found[1] or found[2]
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


TRANSLATIONS = sorted([*ROOT.glob("README.ja.md"), *ROOT.glob("[0-9][0-9]_*_pattern/README.ja.md")])


@pytest.mark.parametrize("path", TRANSLATIONS, ids=lambda path: path.parent.name)
def test_translation_has_the_same_examples_and_tables(path):
    def shown(readme_path):
        text = readme_path.read_text(encoding="utf-8")
        return list(examples(text)), [table[0] for table in SETTINGS.finditer(text)]

    translated, original = shown(path), shown(path.with_name("README.md"))
    assert [(each.commands, each.shown) for each in translated[0]] == [
        (each.commands, each.shown) for each in original[0]
    ]
    assert translated[1] == original[1]
