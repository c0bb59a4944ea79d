"""The table of patterns, and the comparison and formatting of responses."""

import pytest

from scripts.devstack.demo import readable
from scripts.devstack.patterns import DEMOS, PATTERNS
from scripts.devstack.stack import DevStack
from scripts.devstack.steps import mismatch
from scripts.devstack.table import ROOT


def test_every_pattern_has_a_demo():
    assert DEMOS.keys() == PATTERNS.keys()


@pytest.mark.parametrize("number", PATTERNS)
def test_every_entry_of_the_table_can_be_prepared(number, tmp_path):
    stack = DevStack([number], run_dir=tmp_path)
    assert PATTERNS[number].processes
    for managed in stack.processes:
        assert "{" not in " ".join([*managed.argv, *(managed.env[name] for name in managed.definition.env)])
        assert managed.cwd.is_dir()


@pytest.mark.parametrize("number", PATTERNS)
def test_modules_are_named_after_the_patterns_folder(number):
    assert (ROOT / "scripts/devstack/patterns" / f"{PATTERNS[number].name}.py").is_file()
    assert PATTERNS[number].folder.startswith(f"{number}_")


def test_default_ports_are_unique():
    ports = [port for pattern in PATTERNS.values() for process in pattern.processes for port in process.ports.values()]
    assert len(ports) == len(set(ports))


def test_the_proxy_of_06_gets_the_ports_of_its_services():
    stack = DevStack(["06"], environ={"PORT_06_SERVICE_VIRGINICA": "8102"}, ports={"PORT_06_PROXY": 9100})
    proxy = stack.processes[-1]
    assert proxy.env["SERVICES"].endswith("virginica=http://127.0.0.1:8102")
    assert proxy.env["PORT"] == "9100"
    assert stack.urls["PORT_06_PROXY"] == "http://127.0.0.1:9100"


@pytest.mark.parametrize(
    ("want", "got", "where"),
    [
        ({"a": float}, {"a": 0.5, "b": 1}, None),
        ({"a": float}, {"a": "0.5"}, "answer.a is '0.5', not a float"),
        ({"a": 1, "b": 2}, {"a": 1}, "answer has no b"),
        ([float, float], [0.5, 0.5], None),
        ([float, 1], [0.5, 2], "answer[1] is 2, not 1"),
        ([float], [0.5, 0.5], "answer is [0.5, 0.5], not [<class 'float'>]"),
        ({"a": {"b": "ok"}}, {"a": {"b": "down"}}, "answer.a.b is 'down', not 'ok'"),
        ({"a": 1}, [1], "answer is [1], not {'a': 1}"),
        ("ok", "ok", None),
    ],
)
def test_mismatch_names_the_path(want, got, where):
    assert mismatch(want, got) == where


def test_long_responses_take_one_line_per_entry():
    assert readable({"a": 0.123456}) == '{"a": 0.1235}'
    assert readable({"a": ["x" * 60], "b": {"c": "y" * 60}}) == (
        f'{{"a": ["{"x" * 60}"],\n        "b": {{"c": "{"y" * 60}"}}}}'
    )
    assert readable(["x" * 60, "y" * 60]) == f'["{"x" * 60}",\n        "{"y" * 60}"]'
    assert readable("z" * 200) == f'"{"z" * 200}"'
