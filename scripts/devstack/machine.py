"""What a measurement was made on: goes with every figure that is written down."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Those whose version may move a figure.
LIBRARIES = (
    "fastapi", "uvicorn", "uvloop", "httptools", "pydantic", "orjson", "onnxruntime", "numpy", "redis", "hiredis",
    "sqlalchemy", "pymysql", "grpcio", "protobuf", "httpx", "aiohttp", "tensorflow",
)  # fmt: skip


def machine() -> dict[str, object]:
    """CPU, cores that this process may use, memory in GB, operating system, Python, date."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "os": _os(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def libraries() -> dict[str, str]:
    """The installed version of each library that may move a figure."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def described() -> str:
    """The machine in one line."""
    it = machine()
    return f"{it['cpu']}, {it['cores']} cores, {it['memory_gb']} GB, {it['os']}, Python {it['python']}, {it['date']}"


def resident_mb(pid: int, field: str = "VmRSS") -> float | None:
    """Resident memory of a process in MB, or with VmHWM its peak; None if it has ended, and where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    _, found, value = status.partition(f"{field}:")
    return int(value.split()[0]) / 1000 if found else None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _os() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return f"{platform.system()} {platform.release()}"
