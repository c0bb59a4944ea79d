"""Records a compose stack's image sizes, memory, and the time until its containers were healthy.

python -m scripts.checks.containers note FILE LABEL     in a pattern's folder, after `docker compose up --wait`
python -m scripts.checks.containers table FILE [JSON]   all recorded rows as one table, which JSON keeps for figures.py
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from scripts.devstack.machine import described

HEADER = """\
| pattern | service | image | memory | healthy after |
|---|---|---:|---:|---:|"""
MB = 1000 * 1000


def docker(*words: str) -> Any:
    """The JSON output of a docker command."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
    return json.loads(done.stdout or "[]")


def note(file: Path, label: str) -> None:
    """Append a line of JSON per container of the stack in the current folder."""
    listed = subprocess.run(["docker", "compose", "ps", "--all", "--quiet"], capture_output=True, text=True, check=True)
    with file.open("a", encoding="utf-8") as notes:
        for container in docker("inspect", *listed.stdout.split()):
            (image,) = docker("image", "inspect", container["Image"])
            row = {
                "pattern": label,
                "service": container["Config"]["Labels"]["com.docker.compose.service"],
                "image_mb": round(image["Size"] / MB),
                "memory_mb": resident_mb(container["Id"]) if container["State"]["Running"] else None,
                "healthy_s": healthy_after_s(container["State"]),
            }
            notes.write(json.dumps(row) + "\n")


def resident_mb(container: str) -> int:
    """Resident memory of a container's processes, libraries and mapped files included."""
    listed = subprocess.run(["docker", "top", container, "-o", "pid,rss"], capture_output=True, text=True, check=True)
    return round(sum(int(line.split()[1]) for line in listed.stdout.splitlines()[1:]) * 1024 / MB)


def healthy_after_s(state: Any) -> float | None:
    """Seconds from the container's start to the end of its first successful health check; None without one."""
    successful = [check for check in state.get("Health", {}).get("Log") or () if check["ExitCode"] == 0]
    if not successful:
        return None
    end, started = (datetime.fromisoformat(text) for text in (successful[0]["End"], state["StartedAt"]))
    return round((end - started).total_seconds(), 1)


def table(file: Path) -> list[list[str]]:
    """The cells of each row. Of several containers of a service, the slowest and the largest count."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = rows.setdefault((row["pattern"], row["service"]), row)
        for column in ("healthy_s", "memory_mb"):
            known[column] = max(filter(None, (known[column], row[column])), default=None)
    cells = []
    for row in rows.values():
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:,} MB"
        after = "" if row["healthy_s"] is None else f"{row['healthy_s']:.1f} s"
        cells.append([row["pattern"], row["service"], f"{row['image_mb']:,} MB", memory, after])
    return cells


def main() -> None:
    if sys.argv[1:2] == ["note"]:
        note(Path(sys.argv[2]), sys.argv[3])
        return
    rows = table(Path(sys.argv[2]))
    print("\n".join([HEADER, *(f"| {' | '.join(cells)} |" for cells in rows)]))
    if len(sys.argv) > 3:
        # Without the time, which is that of whatever else the machine does.
        content = {"machine": described(), "rows": [f"| {' | '.join(cells[:-1])} |" for cells in rows]}
        Path(sys.argv[3]).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
