"""Ten broken models and cards: each is refused before it is served, in one line that names the next step."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from sklearn.linear_model import LogisticRegression
from skops import io

from models import add
from models.files import BuildError
from serving_common import cards
from serving_common.errors import StartupError
from serving_common.tabular import TabularModel
from serving_testing.own_model import CARD, REGRESSION, write_model

ADD = "python -m models.add"


class Unknown(LogisticRegression):  # type: ignore[misc]  # sklearn has no types
    """A type that nobody but its author knows."""


def card(change: Callable[[str], str], text: str = CARD) -> Callable[[Path], None]:
    """The model with a changed card, as a service loads it."""

    def refused(folder: Path) -> None:
        write_model(folder, change(text))
        TabularModel.load(cards.load(folder))

    return refused


def content(text: bytes) -> Callable[[Path], None]:
    """The card with another file as its model."""

    def refused(folder: Path) -> None:
        write_model(folder)
        (folder / "1/model.onnx").write_bytes(text)
        TabularModel.load(cards.load(folder))

    return refused


def untrusted(folder: Path) -> None:
    io.dump(Unknown().fit([[0.0], [1.0]], [0, 1]), folder / "model.skops")
    add.add(add.parse([str(folder / "model.skops"), "--output", str(folder)]))


BROKEN = {
    "wrong hash": (card(lambda text: text.replace("[[inputs]]", f'sha256 = "{"0" * 64}"\n[[inputs]]', 1)), ADD),
    "missing label": (card(lambda text: text.replace('"stay", ', "")), "at least two for classification"),
    "wrong dtype": (card(lambda text: text.replace('dtype = "int64"\nmin = 0\n', "").replace("[[30,", "[[30.5,")), ADD),
    "sample mismatch": (card(lambda text: f"{text}expected = [[0.5, 0.5], [0.5, 0.5]]\n"), ADD),
    "pickle file": (content(pickle.dumps({"weights": [1.0]})), "save it with skops"),
    "skops with an untrusted type": (untrusted, "--trust "),
    "two outputs, neither named": (
        card(lambda text: text.replace('tensor = "probabilities"\n', "")),
        "output.tensor must name one",
    ),
    "sample with an answer that is not finite": (
        card(lambda text: text.replace("[[30,", "[[0,"), REGRESSION),
        "choose other rows",
    ),
    "LFS pointer": (content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "git lfs pull"),
    "card of another model": (
        lambda folder: card(lambda _: cards.DEFAULT_CARD.read_text().replace("iris_svc.onnx", "1/model.onnx"))(folder),
        ADD,
    ),
}


@pytest.mark.parametrize(("serve", "next_step"), BROKEN.values(), ids=BROKEN)
def test_broken_model_is_refused_in_one_line_with_the_next_step(tmp_path, serve, next_step):
    with pytest.raises((BuildError, StartupError)) as refusal:
        serve(tmp_path)

    assert next_step in str(refusal.value)
    assert "\n" not in str(refusal.value)
