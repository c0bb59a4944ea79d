"""Measures one pattern beside its floors and its rivals: `python -m scripts.benchmarks 06`, options after the number.

All patterns, written down: scripts.benchmarks.report.
"""

import runpy
import subprocess
import sys

from scripts.devstack.patterns import PATTERNS
from scripts.devstack.stack import ROOT

BENCHES = {"02": "synchronous", "03": "asynchronous", "04": "batch", "06": "horizontal", "07": "sync_async"}


def main() -> None:
    number = sys.argv[1] if len(sys.argv) > 1 else ""
    if number not in BENCHES:
        sys.exit(f"usage: python -m scripts.benchmarks {'|'.join(BENCHES)} [options]")
    subprocess.run([sys.executable, "-m", "models.build", "--only", *PATTERNS[number].artifacts], cwd=ROOT, check=True)
    del sys.argv[1]
    runpy.run_module(f"scripts.benchmarks.{BENCHES[number]}", run_name="__main__")


if __name__ == "__main__":
    main()
