"""Records the image sizes of a compose stack and the time until its containers were healthy.

python -m scripts.checks.containers note FILE LABEL     in a pattern's folder, after `docker compose up --wait`
python -m scripts.checks.containers table FILE          all recorded rows as one table
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

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
                "healthy_s": healthy_after_s(container["State"]),
            }
            notes.write(json.dumps(row) + "\n")


def healthy_after_s(state: Any) -> float | None:
    """Seconds from the container's start to the end of its first successful health check; None without one."""
    successful = [check for check in state.get("Health", {}).get("Log") or () if check["ExitCode"] == 0]
    if not successful:
        return None
    end, started = (datetime.fromisoformat(text) for text in (successful[0]["End"], state["StartedAt"]))
    return round((end - started).total_seconds(), 1)


def table(file: Path) -> str:
    """The rows as Markdown. Of several containers of a service, the slowest counts."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        known = rows.setdefault((row["pattern"], row["service"]), row)
        known["healthy_s"] = max(filter(None, (known["healthy_s"], row["healthy_s"])), default=None)
    lines = ["| pattern | service | image | healthy after |", "|---|---|---:|---:|"]
    for row in rows.values():
        after = "" if row["healthy_s"] is None else f"{row['healthy_s']:.1f} s"
        lines.append(f"| {row['pattern']} | {row['service']} | {row['image_mb']:,} MB | {after} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["note"]:
        note(Path(sys.argv[2]), sys.argv[3])
    else:
        print(table(Path(sys.argv[2])))


if __name__ == "__main__":
    main()
