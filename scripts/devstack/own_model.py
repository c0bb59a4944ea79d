"""A model of the user's own in place of a pattern's: `make up MODEL=churn`, `make demo MODEL=churn`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.devstack.steps import Demo
from scripts.devstack.table import ROOT, Pattern
from serving_common.cards import Card, Task, load
from serving_common.errors import StartupError

ARTIFACTS = ROOT / "models/artifacts"

OwnModel = Callable[[Card], tuple[Pattern, Demo]]
"""Raises ModelError for a card that the pattern cannot serve."""


class ModelError(Exception):
    """MODEL cannot be served; one line for the person at the terminal."""


def chosen(
    name: str,
    numbers: Sequence[str],
    models: Mapping[str, OwnModel],
    say: Callable[[str], None],
    folder: Path | None = None,
) -> tuple[list[str], dict[str, Pattern], dict[str, Demo]]:
    """Those of these patterns that can serve the model of this name; they and their demos, with it.

    Args:
        name: of a folder in models/artifacts, or in `folder`.
        numbers: of the patterns.
        models: what the patterns make of a card.
        say: is told which patterns are left out, and why.
        folder: instead of models/artifacts.

    Raises:
        ModelError: there is no such model, or none of the patterns can serve it.
    """
    folder = folder or ARTIFACTS
    try:
        card = load(folder / name)
    except StartupError as exc:
        names = ", ".join(sorted(path.parent.name for path in folder.glob("[!.]*/model.toml"))) or "none yet"
        raise ModelError(f"MODEL={name}: {exc}; of your own there are: {names}") from exc
    patterns, demos, reasons = {}, {}, []
    for number, model in models.items():
        try:
            patterns[number], demos[number] = model(card)
        except ModelError as exc:
            reasons += [f"{number} {exc}"] if number in numbers else []
    able = [number for number in numbers if number in patterns]
    if not able:
        raise ModelError(f"MODEL={name}: {'; '.join(reasons)}")
    for reason in reasons:
        say(f"MODEL={name}: without {reason}")
    return able, patterns, demos


def with_card(pattern: Pattern, card: Card, *variables: str) -> Pattern:
    """The pattern with the card in these variables of its own processes, and no other models to build."""
    own = dict.fromkeys(variables or ("MODEL_CARD",), folder_of(card))
    processes = tuple(
        replace(each, env={**each.env, **own}) if each.argv[:2] == ("python", "-m") and "src." in each.argv[2] else each
        for each in pattern.processes
    )
    return replace(pattern, processes=processes, artifacts=())


def folder_of(card: Card) -> str:
    """The card's folder, where the table would fill in placeholders."""
    return str(card.folder).replace("{", "{{").replace("}", "}}")


def require_rows(card: Card) -> None:
    """Raises ModelError for a model of images."""
    if card.task is Task.IMAGE_CLASSIFICATION:
        raise ModelError(f"takes rows, and {card.name} images")


def require_served_folder(card: Card) -> None:
    """Raises ModelError where a model server would not find the model: it wants the layout that models.add writes."""
    if not re.fullmatch(r"\d+/model\.onnx", card.file):
        raise ModelError(f'has a model server, which needs the model as file = "1/model.onnx", not "{card.file}"')


def answers_of(card: Card) -> list[Any]:
    """What the model answers to each row of the sample, as a demo wants it: the value of a regression, or a list."""
    rows: list[list[Any]] = [[float] * card.width] * len(card.sample_rows)
    if card.sample and card.sample.expected:
        rows = card.sample.expected
    return [row[0] for row in rows] if card.task is Task.REGRESSION else list(rows)
