"""Real clients against the server on both runtimes, each in an environment of its own: `make test-clients`.

A client is a script of this folder, whose first lines pin what it needs; uv keeps the environments in its cache. Exit
code: 1 if a client that could be installed got no answer or a wrong one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT, running

HERE = Path(__file__).parent
IRIS = ROOT / "models/artifacts/saved_model/iris"
RUNTIMES = ("tensorflow", "onnx")
INSTALL_WITHIN_S = 900
ANSWER_WITHIN_S = 300


def uv(*arguments: str, within_s: float) -> tuple[int, str]:
    """Exit code of a command of uv, and the last line that it wrote to stderr."""
    command = [sys.executable, "-m", "uv", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    except subprocess.TimeoutExpired:
        return 1, f"no end within {within_s:.0f} s"
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def requirements(script: Path) -> str:
    """What a client's first lines pin."""
    found = re.search(r"^# dependencies = \[(.*)\]$", script.read_text(), re.MULTILINE)
    assert found, script
    return found[1].replace('"', "")


def main() -> int:
    """Runs the clients that the arguments name, or all."""
    scripts = [script for script in sorted(HERE.glob("*.py")) if not script.name.startswith("_")]
    scripts = [script for script in scripts if script.stem in (sys.argv[1:] or [script.stem])]
    states = {script: dict.fromkeys(RUNTIMES, "") for script in scripts}
    python = ("--python", sys.executable)
    for script in scripts:
        code, reason = uv("sync", *python, "--script", str(script), within_s=INSTALL_WITHIN_S)
        if code:
            states[script] = dict.fromkeys(RUNTIMES, f"not installed: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        for runtime in RUNTIMES:
            flags = ("--model_name=iris", f"--model_base_path={IRIS}", f"--runtime={runtime}")
            with running(Path(folder), *flags) as server:
                for script in (script for script in scripts if not states[script][runtime]):
                    arguments = (*python, "--script", str(script), server.grpc_address, server.rest_url)
                    code, reason = uv("run", *arguments, within_s=ANSWER_WITHIN_S)
                    states[script][runtime] = f"FAILED: {reason}" if code else "ok"
                    print(f"{script.stem} on {runtime}: {states[script][runtime]}", file=sys.stderr, flush=True)
    print("| client | what it is | TensorFlow | ONNX |\n| --- | --- | --- | --- |")
    for script in scripts:
        what = (script.read_text().split('"""')[1]).partition(" Arguments")[0]
        print(f"| `{requirements(script)}` | {what} | {' | '.join(states[script].values())} |")
    return int(any(state.startswith("FAILED") for each in states.values() for state in each.values()))


if __name__ == "__main__":
    sys.exit(main())
