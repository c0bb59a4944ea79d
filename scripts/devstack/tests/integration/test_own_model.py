"""`make up MODEL=…` and `make demo MODEL=…`: a model of the user's own in place of the patterns'."""

import csv
import os
import re
import shlex
import subprocess
import sys
import tomllib

import pytest

from scripts.devstack import demo, own_model, up
from scripts.devstack.own_model import chosen
from scripts.devstack.patterns import OWN_MODELS, PATTERNS
from scripts.devstack.stack import free_ports
from scripts.devstack.table import ROOT
from serving_common.cards import Card
from serving_testing.own_model import CARD, write_model
from serving_testing.processes import NO_COVERAGE


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """That of the user's own models, with one called churn."""
    write_model(tmp_path / "churn", CARD)
    monkeypatch.setattr(own_model, "ARTIFACTS", tmp_path)
    return tmp_path


PAGES = [ROOT / "docs/own-model.md", ROOT / "docs/own-model.ja.md"]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)


def test_both_languages_have_the_same_commands_and_card():
    first, second = ([blocks(page, language) for language in ("bash", "toml")] for page in PAGES)
    assert first == second
    [card] = first[1]
    assert Card.model_validate(tomllib.loads(card)).names == ["age", "region", "income", "is_new"]


def test_commands_of_the_page_lead_from_a_file_to_answers(tmp_path, capsys, monkeypatch):
    """The first two; the third starts the same as the second."""
    [commands] = blocks(PAGES[0], "bash")
    add, show, start = map(shlex.split, commands.splitlines())
    monkeypatch.setattr(own_model, "ARTIFACTS", tmp_path / "artifacts")
    write_model(tmp_path)
    (tmp_path / "1/model.onnx").rename(tmp_path / "churn.onnx")
    with (tmp_path / "churn.csv").open("w", newline="") as file:
        rows = [[30, "north", 3100.0, True], [1, "south", "", False], [44, "south", 2500.0, True]]
        csv.writer(file).writerows([["age", "region", "income", "is_new"], *rows])
    done = subprocess.run(
        [sys.executable, *add[1:], "--output", tmp_path / "artifacts"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"next: {commands.splitlines()[1]}\n" in done.stdout
    variables = dict(word.split("=") for word in show[2:])
    assert dict(word.split("=") for word in start[2:]) == variables
    numbers = variables["PATTERNS"].split()
    _, patterns, _ = chosen(variables["MODEL"], numbers, OWN_MODELS, print)
    ports = {name: str(port) for name, port in free_ports(numbers, {**PATTERNS, **patterns}).items()}
    for variable in (ports | NO_COVERAGE | {"JOB_WAIT_SECONDS": "0"}).items():
        monkeypatch.setenv(*variable)

    code = demo.main(["--model", variables["MODEL"], *numbers])

    shown = capsys.readouterr().out
    assert code == 0, shown
    assert ", 0 wrong. All stopped." in shown
    assert '"class_name": ["churn", "churn", "churn"]' in shown
    assert {number for number in numbers if f"| {number} " in shown} == {*numbers}


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
