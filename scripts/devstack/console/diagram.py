"""A pattern's diagram, from the table of processes: boxes in columns, and arrows from caller to called."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scripts.devstack.table import Pattern, ProcessDefinition

CALLERS = "callers"
FRONT, MIDDLE, WORKERS, BEHIND = 1, 2, 3, 4
"""Columns: the process that callers reach, what it calls, what works for it, and what only that calls."""


@dataclass(frozen=True)
class Box:
    """A process, a file that processes share, or the callers (column 0)."""

    id: str
    name: str
    is_store: bool
    column: int
    row: int


def _texts(definition: ProcessDefinition) -> str:
    return " ".join([*definition.argv, *definition.env.values(), *definition.defaults.values()])


def diagram(pattern: Pattern, table: Mapping[str, Pattern]) -> dict[str, Any]:
    """`boxes`, and `arrows` as pairs of their ids. A process calls what its settings name: a port, or a file."""
    everything = {f"{each.number}-{process.name}": process for each in table.values() for process in each.processes}
    owners = {port: id_ for id_, process in everything.items() for port in process.ports}
    own = [id_ for id_ in everything if id_.startswith(f"{pattern.number}-")]
    arrows = []
    for id_ in own:
        named = [owners[port] for port in re.findall(r"\{(PORT_\w+)\}", _texts(everything[id_]))]
        files = [f"{pattern.number}/{file}" for file in re.findall(r"\{state\}/([\w.]+)", _texts(everything[id_]))]
        arrows += [(id_, called) for called in dict.fromkeys(named + files) if called != id_]
    # What is called twice is called by the workers, too.
    front = owners[next(iter(pattern.published))]
    workers = {id_ for id_ in own if id_ != front and id_ not in {called for _, called in arrows}}

    def is_store(id_: str) -> bool:
        return id_ not in everything or str(everything[id_].ready).startswith("tcp://")

    def column(id_: str) -> int:
        if id_ == front:
            return FRONT
        if id_ in workers:
            return WORKERS
        return BEHIND if not is_store(id_) and any((worker, id_) in arrows for worker in workers) else MIDDLE

    ids = dict.fromkeys([front, *own, *(called for _, called in arrows)])
    rows = Counter[int]()
    boxes = [Box(CALLERS, CALLERS, is_store=False, column=0, row=0)]
    for id_ in ids:
        rows[column(id_)] += 1
        name = re.split("[-/]", id_, maxsplit=1)[1]
        boxes.append(Box(id_, name, is_store(id_), column(id_), rows[column(id_)] - 1))
    return {"boxes": [asdict(box) for box in boxes], "arrows": [(CALLERS, front), *arrows]}
