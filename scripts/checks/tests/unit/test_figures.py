"""Measured figures in READMEs and pages: every block agrees with the committed results, and there are no others."""

import json
import re
import subprocess

import pytest

from scripts.checks import figures
from scripts.checks.figures import ROOT, Results, main, templates, with_current_blocks

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MEASURED = re.compile(r"(?<![\w.,])\d[\d,.]*\s?(?:/s|/秒|ms|ミリ秒|kB|MB|GB|x|times|倍)(?![A-Za-z\d])")
GENERATED = ("docs/bench/", "docs/prove/", "docs/decisions/")  # of one run; records are dated
PAGES = [
    page
    for page in figures.pages()
    if (page.name.startswith("README") or page.parent.name == "docs")
    and not str(page.relative_to(ROOT)).startswith(GENERATED)
]
# Numbers that are not measured by `make bench`, by page and text, with the reason.
ALLOWED = {
    ("docs/models.md", "14 MB"): "size of a download",
    ("docs/models.md", "102 MB"): "size of a download",
    ("docs/models.md", "2 GB"): "rough requirement of TensorFlow",
    ("07_sync_async_pattern/README.md", "400 MB"): "a limit: 8 bytes for each of MAX_IMAGE_PIXELS",
    ("07_sync_async_pattern/README.ja.md", "400 MB"): "the same limit",
    ("docs/model-server.md", "20 ms"): "a limit: QUICK_S of the server",
}


def outside_blocks(text: str) -> str:
    return FENCED.sub("", figures.BLOCK.sub("", text))


@pytest.mark.parametrize("page", figures.pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_agree_with_the_committed_results(page):
    assert page.read_text(encoding="utf-8") == with_current_blocks(page, Results()), "make figures is out of date"


def unmarked():
    return {
        (str(page.relative_to(ROOT)), found[0])
        for page in PAGES
        for found in MEASURED.finditer(outside_blocks(page.read_text(encoding="utf-8")))
    }


def test_measured_figures_stand_only_in_blocks():
    assert sorted(unmarked() - ALLOWED.keys()) == []


def test_every_exception_is_needed():
    assert sorted(ALLOWED.keys() - unmarked()) == []


def test_both_languages_have_the_same_blocks_and_placeholders():
    english, japanese = templates("en"), templates("ja")
    assert english.keys() == japanese.keys()
    for name, template in english.items():
        placeholders, translated = (
            sorted(set(figures.PLACEHOLDER.findall(text))) for text in (template, japanese[name])
        )
        assert placeholders == translated, name


def test_every_template_is_used():
    used = {found[2] for page in figures.pages() for found in figures.BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert templates("en").keys() == used


@pytest.fixture
def repository(tmp_path):
    """A small repository with one page and the committed results."""
    for name in ("bench/bench", "bench/profile", "prove/ledger", "prove/swarm", "prove/containers", "traces/cost"):
        copy = tmp_path / f"docs/{name}.json"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text((ROOT / f"docs/{name}.json").read_text(encoding="utf-8"))
    (tmp_path / "README.md").write_text("before\n<!-- figures:03 -->\nold\n<!-- /figures -->\nafter\n")
    for command in (["init", "-q"], ["add", "README.md"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_blocks_are_written_and_then_current(repository, capsys):
    assert main([], repository) == 1
    assert "out of date: README.md" in capsys.readouterr().out
    assert main(["--write"], repository) == 0
    text = (repository / "README.md").read_text()
    assert text.startswith("before\n<!-- figures:03 -->\n`make bench PATTERNS=03`")
    assert text.endswith("\n<!-- /figures -->\nafter\n")
    assert main([], repository) == 0


def test_another_result_is_another_figure(repository):
    path = repository / "docs/bench/bench.json"
    content = json.loads(path.read_text())
    for each in content["patterns"]["03"]:
        each["value"] = 0.125
    path.write_text(json.dumps(content))
    assert main(["--write"], repository) == 0
    assert "| two workers | 0.125 jobs/s |" in (repository / "README.md").read_text()


@pytest.mark.parametrize(
    ("placeholder", "text"),
    [
        ("{06|a service to a bare FastAPI endpoint, 32 connections|ratio|at_least}", "0.5"),
        ("{all|02 prediction (REST), 1 connection|rate} {||p50}", "1,418 0.687"),
        ("{04/SQLite|book, *|rate}", "51.9"),
        ("{ledger|03|completed} {||accepted} {||kill -9}", "8,933 8,933 50"),
        ("{ledger|all|minutes} {||profile}", "9 long"),
    ],
)
def test_a_placeholder_is_a_result(placeholder, text):
    pinned = {"accepted": 8933, "lost": 0, "stuck": 0, "seconds": 547, "faults": {"kill -9": {"worker": 50}}}
    results = Results()
    results._losses = {"profile": "long", "patterns": [{"pattern": "03", **pinned}]}
    measured = {"06": ("a service to a bare FastAPI endpoint, 32 connections", "ratio", 0.75)}
    measured |= {"all": ("02 prediction (REST), 1 connection", "rate", 1417.6), "04": ("book, 10 rows", "rate", 51.9)}
    results._tables = {
        number: [{"group": "SQLite", "what": what, "measure": measure, "value": value, "at_least": 0.5}]
        for number, (what, measure, value) in measured.items()
    }
    results._tables["all"].append({"group": "", "what": measured["all"][0], "measure": "p50", "value": 0.6869})
    assert results.render(placeholder) == text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (("bench/bench.json", '"POST /predict, 100/s"', '"other"'), "has no 03|POST /predict, 100/s|p50"),
        (("bench/bench.json", '"03": [', '"99": ['), "has no 03|POST /predict, 32 connections|rate"),
    ],
)
def test_a_missing_result_is_named(repository, capsys, change, problem):
    name, old, new = change
    path = repository / "docs" / name
    path.write_text(path.read_text().replace(old, new))
    assert main(["--write"], repository) == 1
    assert problem in capsys.readouterr().err


def test_a_missing_pattern_of_the_ledger_is_named():
    results = Results()
    results._losses = {"patterns": []}
    with pytest.raises(ValueError, match="has no pattern 03"):
        results.render("{ledger|03|accepted}")


def test_a_block_without_a_template_is_named(repository, capsys):
    (repository / "README.md").write_text("<!-- figures:05 -->\n<!-- /figures -->\n")
    assert main([], repository) == 1
    assert "no template of figures:05" in capsys.readouterr().err
