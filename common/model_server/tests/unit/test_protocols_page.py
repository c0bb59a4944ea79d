"""PROTOCOLS.md names tests and clients that there are."""

from __future__ import annotations

import re

from tests.clients.__main__ import PAGE, TABLE, scripts, table
from tests.conftest import PACKAGE


def test_table_lists_every_client_with_its_versions() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found
    # All but the last two cells, which are results.
    written = [line.rsplit(" | ", 2)[0] for line in found[0].splitlines()[1:-1]]
    expected = table({script: {"tensorflow": "ok", "onnx": "ok"} for script in scripts()})
    assert written == [line.rsplit(" | ", 2)[0] for line in expected.splitlines()]


def test_every_test_that_a_row_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))
    modules = (PACKAGE / "tests").rglob("test_*.py")
    known = {name for path in modules for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)}
    assert len(named) > 40
    assert named - known == set()
