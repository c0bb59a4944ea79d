"""Prometheus's own checks, where its Debian package `prometheus`, or a download, has put promtool on PATH."""

import shutil
import subprocess

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
