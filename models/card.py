"""A model card as models.add writes it: model.toml."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """One input of a row, with its values in the CSV file."""

    name: str
    dtype: str
    tensor: str | None = None
    low: float | None = None
    high: float | None = None
    allowed: list[str] | None = None
    is_nullable: bool = False
    values: Sequence[Any] = ()

    def __str__(self) -> str:
        bounds = "" if self.low is None else f" {self.low:g} to {self.high:g}"
        allowed = "" if self.allowed is None else f" one of {', '.join(self.allowed)}"
        of = "" if self.tensor is None else f" of {self.tensor}"
        return f"{self.name} {self.dtype}{bounds}{allowed}{' or null' if self.is_nullable else ''}{of}"


@dataclass(frozen=True)
class Description:
    """What a card says, and what is shown of it."""

    name: str
    task: str
    columns: list[Column]
    output_tensor: str
    labels: list[str] | None
    value: str | None
    unit: str | None
    rows: list[list[Any]]
    notes: list[str]
    unknown: list[str]
    expected: list[list[float]] = field(default_factory=list)
    tolerance: float | None = None
    image: dict[str, Any] | None = None
    file: str = ""
    sha256: str = ""


def toml(card: Description) -> str:
    """The text of model.toml."""
    parts = [_table("", name=card.name, file=card.file, sha256=card.sha256, task=card.task)]
    parts += [
        _table(
            "[[inputs]]",
            name=each.name,
            dtype=each.dtype,
            min=each.low,
            max=each.high,
            values=each.allowed,
            nullable=each.is_nullable or None,
            tensor=each.tensor,
        )
        for each in card.columns
    ]
    labels = None if card.image and "labels" in card.image else card.labels
    parts.append(_table("[output]", tensor=card.output_tensor, labels=labels, value=card.value, unit=card.unit))
    if card.image is not None:
        parts.append(_table("[image]", **card.image))
    if card.rows:
        expected = card.expected or None
        parts.append(_table("[sample]", rows=card.rows, expected=expected, tolerance=card.tolerance))
    return "\n".join(parts)


def _table(header: str, **fields: Any) -> str:
    lines = [header] if header else []
    lines += [f"{name} = {_value(value)}" for name, value in fields.items() if value is not None]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], list):
            return "[\n" + "".join(f"    {_value(each)},\n" for each in value) + "]"
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
