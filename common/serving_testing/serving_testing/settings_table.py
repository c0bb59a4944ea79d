"""Prints the Markdown table of a settings class: `python <this file> src.configurations.ProxySettings` in its folder.

A separate program, because every pattern's package is called `src` and one interpreter can import only one of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING

from pydantic import AliasChoices, Secret, SecretBytes, SecretStr
from pydantic_core import PydanticUndefined

from serving_common.settings import Settings, is_secret

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_settings import BaseSettings


def main(dotted_name: str) -> None:
    """Print the table of the class with this dotted name, imported from the current folder."""
    sys.path[0] = os.getcwd()  # noqa: PTH109 - sys.path holds strings; the first was this file's folder
    module, _, name = dotted_name.rpartition(".")
    print(table(getattr(importlib.import_module(module), name)))


def table(settings: type[BaseSettings]) -> str:
    """One row per field: its variable, its default in the form of an environment variable, its description."""
    rows = ["| variable | default | description |", "|---|---|---|"]
    for name, field in settings.model_fields.items():
        variable = f"`{_variable(settings, name, field)}`"
        if issubclass(settings, Settings) and is_secret(field.annotation):
            variable += " or `…_FILE`"
        cells = (variable, _default(field), field.description or "")
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(rows)


def _variable(settings: type[BaseSettings], name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = str(alias.choices[0])
    return (alias if isinstance(alias, str) else settings.model_config.get("env_prefix", "") + name).upper()


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None or isinstance(value, Secret | SecretStr | SecretBytes):
        return "unset"
    text = _text(value)
    return f"`{text}`" if text else "empty"


def _text(value: object) -> str:
    if isinstance(value, Enum):
        return _text(value.value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return ",".join(f"{_text(key)}={_text(each)}" for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(map(_text, value))
    return str(value)


if __name__ == "__main__":
    main(sys.argv[1])
