"""`make trace` on a small repository, whose tests really run, and the form of the real specifications."""

import subprocess
import sys

import pytest

from scripts.checks.traceability import TestRecord, check, main, requirements
from scripts.devstack.table import ROOT

TESTS = """
import pytest

class TestShop:
    def test_is_open(self):
        pass

@pytest.mark.parametrize("n", [1, 2])
def test_sells(n):
    pass

@pytest.mark.parametrize("n", [1, 2])
def test_counts(n):
    assert n == 1

def test_ships():
    pytest.skip("no ship")

@pytest.fixture
def broken():
    raise OSError

def test_breaks(broken):
    pass
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    tests = root / "06_shop_pattern/tests"
    tests.mkdir(parents=True)
    (tests / "test_shop.py").write_text(TESTS)
    (tests / "test_later.py").write_text("def test_later(): pass\n")
    for module in ("scripts/benchmarks/shop.py", "scripts/chaos/shop.py", "06_shop_pattern/tests/compose.sh"):
        (root / module).parent.mkdir(parents=True, exist_ok=True)
        (root / module).touch()
    (root / "07_other_pattern").mkdir()
    (root / "Makefile").write_text("lint:\n\ttrue\n")
    command = [sys.executable, "-m", "pytest", "tests/test_shop.py", f"--rootdir={root}", "-o", "junit_family=xunit1"]
    report = f"--junit-xml={root}/.run/tests/06_shop_pattern.xml"
    subprocess.run([*command, report, "-p", "no:cacheprovider"], cwd=tests.parent, check=False, capture_output=True)
    return root


@pytest.fixture
def trace(shop, capsys):
    def trace_one(references):
        row = f"| F1 | It is so | {references} |"
        table = f"# Shop\n\n| no. | requirement | shown by |\n| --- | --- | --- |\n{row}\n\n| a | b | test_none.py |\n"
        (shop / "06_shop_pattern/SPECIFICATION.md").write_text(table)
        return main([], shop), capsys.readouterr().out

    return trace_one


@pytest.mark.parametrize(
    "references",
    [
        "test_shop.py::test_sells",
        "06_shop_pattern/tests/test_shop.py::test_is_open",
        "`test_shop.py::test_sells`, ::test_is_open, bench:06, prove:06, compose:06, make:lint",
        "compose:06",
    ],
)
def test_passed_tests_and_existing_targets_are_accepted(trace, references):
    code, output = trace(references)
    assert code == 0
    assert "SPECIFICATION.md:" not in output
    assert output.count("| 1 ") >= 1


def test_skipped_test_is_reported_without_failing(trace):
    code, output = trace("test_shop.py::test_ships")
    assert code == 0
    assert "06_shop_pattern/SPECIFICATION.md:5: F1 test_shop.py::test_ships: skipped" in output


@pytest.mark.parametrize(
    ("references", "note"),
    [
        ("", "F1 nothing shows it"),
        ("test_shop.py::test_counts", "test_shop.py::test_counts: failed"),
        ("test_shop.py::test_breaks", "failed"),
        ("test_shop.py", "test_shop.py: failed"),
        ("test_shop.py::test_sells, ::test_sings", "::test_sings: there is no such test"),
        ("test_zoo.py::test_sells", "there is no such file"),
        ("test_later.py::test_later", "was not run by the last `make test`"),
        ("bench:05", "there is no such target"),
        ("bench:07", "there is no such target"),
        ("compose:07", "there is no such target"),
        ("make:coffee", "there is no such target"),
        ("magic:06", "there is no such target"),
    ],
)
def test_unproven_requirement_is_reported(trace, references, note):
    code, output = trace(references)
    assert code == 1
    assert note in output


def test_missing_report_fails(shop, trace):
    record = shop / ".run/tests/06_shop_pattern.xml"
    hidden = record.rename(record.with_suffix(".hidden"))
    try:
        code, output = trace("test_shop.py::test_sells")
    finally:
        hidden.rename(record)
    assert code == 1
    assert "06_shop_pattern: no record of its tests: make test FOLDERS=06_shop_pattern" in output


def test_specification_without_requirements_fails(shop, capsys):
    (shop / "06_shop_pattern/SPECIFICATION.md").write_text("# Shop\n\n1. It sells. `test_shop.py`\n")
    assert main([], shop) == 1
    assert "no requirement in it has the form" in capsys.readouterr().out


@pytest.mark.parametrize(
    "specification", sorted(ROOT.glob("[0-9][0-9]_*_pattern/SPECIFICATION.md")), ids=lambda at: at.parent.name
)
def test_real_requirements_refer_to_existing_tests(specification):
    """Whether they passed is up to a complete `make test`."""
    found = list(requirements(specification))
    assert len({each.number for each in found}) == len(found) > 10
    for requirement in found:
        _, notes = check(requirement, specification.parent, TestRecord({}, {}))
        assert [note for note in notes if "was not run" not in note] == []
