"""Prometheus's own checks, where its Debian package `prometheus`, or a download, has put promtool on PATH."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

BINARY = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(BINARY is None, reason="promtool is not installed (Debian: apt install prometheus)")


def promtool(*arguments: str, page: str | None = None) -> list[str]:
    """The lines in which promtool complains, given these arguments and standard input; none if all is well."""
    assert BINARY is not None
    done = subprocess.run([BINARY, *arguments], input=page, capture_output=True, text=True, check=False, timeout=60)
    return (done.stdout + done.stderr).splitlines() if done.returncode else []


def naming_problems(page: str) -> list[str]:
    """How a page of /metrics breaks Prometheus's naming rules, apart from `key_count`, a name that is specified."""
    return [line for line in promtool("check", "metrics", page=page) if not line.startswith("redis_key_count ")]


def undocumented(page: str, readme: Path) -> list[str]:
    """The metrics of our own on a page of /metrics that a README does not name."""
    names = re.findall(r"^# TYPE (\w+) ", page, re.MULTILINE)
    text = readme.read_text(encoding="utf-8")
    return [name for name in names if not name.startswith(("python_", "process_")) and f"`{name}`" not in text]
