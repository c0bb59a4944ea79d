"""`make test` on a repository of two small folders."""

import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from serving_testing import run_tests

ROOT = Path(__file__).parents[4]
FOLDER = "90_shop_pattern"
PASSES = "from src.shop import price\n\ndef test_price(): assert price(2) == 4\n"
OTHER = "import pytest\n\n@pytest.mark.skip(reason='x')\ndef test_skipped(): pass\n\ndef test_other(): pass\n"


@pytest.fixture
def make_test(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path / ".run/tests")
    monkeypatch.setenv("JOBS", "2")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)

    def make(files):
        for name, text in {"src/__init__.py": "", "tests/__init__.py": "", **files}.items():
            path = tmp_path / FOLDER / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        monkeypatch.setattr(sys, "argv", ["run_tests", FOLDER])
        return run_tests.main(), capsys.readouterr().out

    return make


def test_shards_are_summed_up_with_their_common_coverage(make_test, tmp_path):
    source = "def price(n):\n    return 2 * n\n"
    code, output = make_test({"src/shop.py": source, "tests/test_a.py": PASSES, "tests/test_b.py": OTHER})
    assert code == 0, output
    assert f"==> tested {FOLDER} 2/2" in output
    assert f"{FOLDER:<38} ok        coverage 100%  2 passed, 1 skipped" in output
    cases = ET.parse(tmp_path / f".run/tests/{FOLDER}.xml").getroot().iter("testcase")
    assert {case.attrib["file"] for case in cases} == {f"{FOLDER}/tests/test_{name}.py" for name in "ab"}


@pytest.mark.parametrize(
    ("source", "test"),
    [
        pytest.param("def price(n):\n    return n\n", PASSES, id="failed test"),
        pytest.param(
            "def price(n):\n    return 2 * n\n\ndef idle():\n    return 1\n" + "x = 1\n", PASSES, id="coverage"
        ),
        pytest.param("", PASSES, id="import error"),
    ],
)
def test_a_failure_or_missing_coverage_returns_1(make_test, source, test):
    code, output = make_test({"src/shop.py": source, "tests/test_a.py": test})
    assert code == 1
    assert f"{FOLDER:<38} FAILED" in output


def test_known_durations_balance_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path)
    (tmp_path / FOLDER / "tests").mkdir(parents=True)
    cases = ""
    for name, seconds in {"a": 9, "b": 4, "c": 3, "d": 2}.items():
        (tmp_path / FOLDER / f"tests/test_{name}.py").touch()
        cases += f'<testcase file="{FOLDER}/tests/test_{name}.py" time="{seconds}"/>'
    (tmp_path / f"{FOLDER}.xml").write_text(f"<testsuites>{cases}</testsuites>")
    folder = run_tests.Folder(FOLDER)
    assert run_tests.plan([folder], jobs=2) == [(folder, 0), (folder, 1)]
    assert folder.shards == [["tests/test_a.py"], ["tests/test_b.py", "tests/test_c.py", "tests/test_d.py"]]
