"""`make prove`: a real pattern in the quick form, and dummies whose proofs must not hold."""

import json
from dataclasses import replace
from typing import Any

import pytest

from scripts.chaos.__main__ import PROOFS, main
from scripts.chaos.proof import Answer, Incident, Problem, Proof
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.tests.dummies import DUMMIES


def test_every_pattern_has_a_proof():
    assert PROOFS.keys() == PATTERNS.keys()


def test_06_holds_in_the_quick_form(tmp_path, capsys):
    assert main(["06", "--form", "quick", "--output", str(tmp_path)]) == 0
    ledger = json.loads((tmp_path / "ledger.json").read_text())
    (proof,) = ledger["patterns"]
    assert (proof["lost"], proof["stuck"], proof["failed_answers"]) == (0, 0, 0)
    assert proof["faults"].keys() == {"kill -9", "hang", "lie", "garbage"}
    assert proof["refused_answers"] > 0  # the faults were felt
    assert proof["accepted"] > proof["refused_answers"]
    assert "as before after" in capsys.readouterr().out
    assert "| 06 Horizontal microservices |" in (tmp_path / "ledger.md").read_text()


@pytest.fixture
def prove_dummy(tmp_path):
    def prove(title):
        table = {"90": replace(DUMMIES["90"], title=title)}
        code = main(["90", "--output", str(tmp_path)], table, {"90": "scripts.chaos.tests.dummy_proof"})
        return code, json.loads((tmp_path / "ledger.json").read_text())["patterns"][0]

    return prove


def test_what_holds_ends_with_0(prove_dummy):
    code, proof = prove_dummy("holds")
    assert (code, proof["kept"]) == (0, True)
    assert [incident["fault"] for incident in proof["incidents"]] == ["kill -9", "hang"]
    assert proof["refused_answers"] > 0
    assert proof["worst_recovery_s"] > 0
    assert proof["remarks"] == ["It was a dummy."]


@pytest.mark.parametrize(
    ("title", "column", "said"),
    [
        ("blames", "failed_answers", "FAILED: 90 GET"),
        ("stuck", "stuck", "as before after  NEVER"),
        ("breaks", "error", "broke off: RuntimeError: the proof is wrong"),
    ],
)
def test_what_does_not_hold_ends_with_1(prove_dummy, capsys, title, column, said):
    code, proof = prove_dummy(title)
    assert (code, proof["kept"]) == (1, False)
    assert proof[column]
    assert said in capsys.readouterr().out


def test_patterns_that_do_not_start_end_with_1(capsys, tmp_path):
    assert main(["91", "--output", str(tmp_path)], DUMMIES, {"91": "scripts.chaos.tests.dummy_proof"}) == 1
    assert "make prove: 91 bad did not become ready" in capsys.readouterr().out


def test_an_unknown_pattern_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["05"])
    assert "no pattern 05; there are 02, 03" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("blame", "started", "ended", "is_forgiven"),
    [
        pytest.param("service", 1, 3, True, id="under way when it began"),
        pytest.param("service", 4, 5, True, id="meanwhile"),
        pytest.param("service", 6.5, 7, True, id="within the grace after it"),
        pytest.param("service", 8, 9, False, id="after it"),
        pytest.param("service", 1, 1.5, False, id="before it"),
        pytest.param("other", 4, 5, False, id="another's fault"),
        pytest.param("", 4, 5, False, id="nobody's fault"),
    ],
)
def test_an_answer_is_forgiven_only_during_the_outage_that_it_blames(blame, started, ended, is_forgiven):
    answer = Answer("", started, ended, Problem("", blame))
    proof = Proof(number="90", title="", accepted=1, grace_s=1, answers=[answer])
    for is_outage in (True, False):
        proof.incidents = [Incident("kill -9", "service", is_outage, started=2, ended=6)]
        assert (proof.failed == []) is (is_forgiven and is_outage)
        assert proof.is_kept is (is_forgiven and is_outage)


@pytest.mark.parametrize("change", [{"lost": 1}, {"twice": 1}, {"stuck": 1}, {"error": "x"}, {"accepted": 0}])
def test_a_proof_holds_only_if_each_column_is_as_it_must_be(change):
    as_it_must_be: dict[str, Any] = {"number": "90", "title": "", "accepted": 1, "twice": 0}
    incident = Incident("kill -9", "service", is_outage=True, started=0, ended=1)
    assert Proof(**as_it_must_be, incidents=[incident]).is_kept
    assert not Proof(**(as_it_must_be | change), incidents=[incident]).is_kept
    assert not Proof(**as_it_must_be).is_kept
