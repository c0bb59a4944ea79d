"""The table of clients in PROTOCOLS.md lists the clients that there are, with the versions that they pin."""

from __future__ import annotations

from tests.clients.__main__ import PAGE, TABLE, scripts, table


def test_table_lists_every_client_with_its_versions() -> None:
    found = TABLE.search(PAGE.read_text(encoding="utf-8"))
    assert found
    # All but the last two cells, which are results.
    written = [line.rsplit(" | ", 2)[0] for line in found[0].splitlines()[1:-1]]
    expected = table({script: {"tensorflow": "ok", "onnx": "ok"} for script in scripts()})
    assert written == [line.rsplit(" | ", 2)[0] for line in expected.splitlines()]
