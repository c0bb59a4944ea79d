"""`make up MODEL=…` and `make demo MODEL=…`: a model of the user's own in place of the patterns'."""

import math

import pytest

from scripts.devstack import demo, own_model, up
from scripts.devstack.own_model import chosen
from scripts.devstack.patterns import OWN_MODELS, PATTERNS
from scripts.devstack.stack import free_ports
from serving_testing.own_model import CARD, value_of, write_model

YES = [1 / (1 + math.exp(-value_of(row))) for row in ([30, "north", 3100.0, True], [1, "south", None, False])]
EXPECTED = f"expected = {[[1 - each, each] for each in YES]}"
ROWS = ["02", "03", "04", "06"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """That of the user's own models, with one called churn."""
    write_model(tmp_path / "churn", CARD)
    monkeypatch.setattr(own_model, "ARTIFACTS", tmp_path)
    return tmp_path


def test_demo_shows_the_cards_sample_in_each_pattern(folder, capsys, monkeypatch):
    _, patterns, _ = chosen("churn", ROWS, OWN_MODELS, print)
    for name, port in free_ports(ROWS, {**PATTERNS, **patterns}).items():
        monkeypatch.setenv(name, str(port))
    monkeypatch.setenv("JOB_WAIT_SECONDS", "0")
    write_model(folder / "churn", CARD + EXPECTED)

    code = demo.main(["--model", "churn", *ROWS])

    shown = capsys.readouterr().out
    assert code == 0, shown
    assert ", 0 wrong. All stopped." in shown
    assert '"class_name": ["churn", "churn"]' in shown
    assert {number for number in ROWS if f"| {number} " in shown} == {*ROWS}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("chrun", lambda text: text, "MODEL=chrun: there is no model card at"),
        ("churn", lambda text: text.replace("int64", "int"), "MODEL=churn: "),
        ("churn", lambda text: text.replace("1/model.onnx", "churn.onnx"), 'needs the model as file = "1/model.onnx"'),
    ],
    ids=["no such folder", "faulty card", "not the layout of a model server"],
)
@pytest.mark.parametrize("program", [up, demo], ids=["up", "demo"])
def test_wrong_model_is_one_clear_line(folder, capsys, program, name, change, reason):
    (folder / "churn/model.toml").write_text(change(CARD))

    assert program.main(["--model", name, "03"]) == 1

    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"make {program.__name__.rpartition('.')[2]}: MODEL={name}: ")
    assert reason in line
