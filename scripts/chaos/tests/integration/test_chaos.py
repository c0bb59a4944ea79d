"""`make prove`: a real pattern in the quick profile, and dummies whose runs must fail."""

import json
from dataclasses import replace

import pytest

from scripts.chaos.__main__ import main
from scripts.devstack.tests.dummies import DUMMIES

DUMMY = DUMMIES["90"]


def test_06_passes_in_the_quick_profile(tmp_path, capsys):
    assert main(["06", "--profile", "quick", "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "ledger.json").read_text())
    (run,) = report["patterns"]
    assert (run["lost"], run["stuck"], run["failed_answers"]) == (0, 0, 0)
    assert run["faults"].keys() == {"kill -9", "hang", "lie", "garbage"}
    assert run["refused_answers"] > 0  # clients noticed the faults
    assert run["accepted"] > run["refused_answers"]
    assert "as before after" in capsys.readouterr().out
    assert "| 06 Horizontal microservices |" in (tmp_path / "ledger.md").read_text()


@pytest.fixture
def run_dummies(tmp_path):
    def run_them(*titles):
        table = {f"9{n}": replace(DUMMY, number=f"9{n}", title=title) for n, title in enumerate(titles)}
        code = main([*table, "--output", str(tmp_path)], table, dict.fromkeys(table, "scripts.chaos.tests.dummy_chaos"))
        return code, json.loads((tmp_path / "ledger.json").read_text())["patterns"]

    return run_them


def test_a_run_without_losses_exits_with_0(run_dummies):
    code, [run] = run_dummies("passes")
    assert (code, run["passed"]) == (0, True)
    assert [incident["fault"] for incident in run["incidents"]] == ["kill -9", "hang"]
    assert run["refused_answers"] > 0
    assert run["worst_recovery_s"] > 0
    assert run["remarks"] == ["It was a dummy."]


@pytest.mark.parametrize(
    ("title", "column", "printed"),
    [
        ("blames", "failed_answers", "FAILED: 90 GET"),
        ("stuck", "stuck", "as before after  NEVER"),
        ("raises", "error", "ended early: RuntimeError: the chaos module is wrong"),
    ],
)
def test_a_run_with_losses_exits_with_1(run_dummies, capsys, title, column, printed):
    code, [run] = run_dummies(title)
    assert (code, run["passed"]) == (1, False)
    assert run[column]
    assert printed in capsys.readouterr().out


def test_a_failure_does_not_keep_the_next_pattern_from_running(run_dummies):
    code, reported = run_dummies("raises", "passes")
    assert code == 1
    assert [run["passed"] for run in reported] == [False, True]


def test_a_skipped_pattern_does_not_fail(run_dummies, capsys):
    assert run_dummies("skipped") == (0, [])
    assert "skipped: no dummies here" in capsys.readouterr().out


def test_a_pattern_that_does_not_start_exits_with_1(capsys, tmp_path):
    known = {"91": "scripts.chaos.tests.dummy_chaos"}
    assert main(["91", "--output", str(tmp_path)], DUMMIES, known) == 1
    assert "91 bad did not become ready" in capsys.readouterr().out


def test_an_unknown_pattern_is_a_usage_error(capsys):
    with pytest.raises(SystemExit):
        main(["05"])
    assert "no pattern 05; there are 02, 03" in capsys.readouterr().err
