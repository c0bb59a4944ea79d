"""Real clients against the server on both runtimes, each in an environment of its own: `make test-clients`.

A client is a script of this folder, whose first lines pin what it needs: a .py file for uv, which keeps the
environments in its cache, or a .js file for npm, whose packages are kept in .tools/. The table of PROTOCOLS.md is
written with --write. Exit code: 1 if a client that could be installed got no answer or a wrong one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from tests.conftest import PACKAGE, ROOT, running

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import ServerUnderTest

HERE = Path(__file__).parent
PAGE = PACKAGE / "PROTOCOLS.md"
TABLE = re.compile(r"(<!-- clients -->\n).*?(<!-- /clients -->)", re.DOTALL)
NODE_MODULES = ROOT / ".tools/clients"
IRIS = ROOT / "models/artifacts/saved_model/iris"
RUNTIMES = ("tensorflow", "onnx")
INSTALL_WITHIN_S = 900
ANSWER_WITHIN_S = 300


def scripts() -> list[Path]:
    """Every client."""
    found = [path for path in HERE.iterdir() if path.suffix in (".py", ".js") and not path.name.startswith("_")]
    return sorted(found, key=lambda path: path.stem)


def requirements(script: Path) -> list[str]:
    """What a client's first lines pin."""
    found = re.search(r"^(?:#|//) dependencies = (\[.*\])$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, script
    pins: list[str] = json.loads(found[1])
    return pins


def install(script: Path) -> tuple[int, str]:
    """Make a client's environment; as `run`."""
    if script.suffix == ".py":
        return run(*UV, "sync", *PYTHON, "--script", str(script), within_s=INSTALL_WITHIN_S)
    if not shutil.which("node") or not shutil.which("npm"):
        return 1, "there is no node or no npm on this machine"
    folder = NODE_MODULES / script.stem
    # npm would otherwise install into the first folder above that looks like a package.
    folder.mkdir(parents=True, exist_ok=True)
    quiet = ("--no-save", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    return run("npm", "install", *quiet, "--prefix", str(folder), *requirements(script), within_s=INSTALL_WITHIN_S)


def answer(script: Path, *arguments: str) -> tuple[int, str]:
    """Run an installed client; as `run`."""
    if script.suffix == ".py":
        return run(*UV, "run", *PYTHON, "--script", str(script), *arguments, within_s=ANSWER_WITHIN_S)
    modules = str(NODE_MODULES / script.stem / "node_modules")
    return run("node", str(script), *arguments, within_s=ANSWER_WITHIN_S, NODE_PATH=modules)


UV = (sys.executable, "-m", "uv")
PYTHON = ("--python", sys.executable)


def run(*command: str, within_s: float, **environment: str) -> tuple[int, str]:
    """Exit code of a command, and the last line that it wrote to stderr."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=within_s, check=False, env=os.environ | environment
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {within_s:.0f} s"
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1]


def table(states: Mapping[Path, Mapping[str, str]]) -> str:
    """What each client is, and how it fared on each runtime."""
    lines = ["| client | what it is | TensorFlow | ONNX |", "| --- | --- | --- | --- |"]
    for script, found in states.items():
        what = script.read_text(encoding="utf-8").split('"""')[1].partition(" Arguments")[0]
        lines.append(f"| `{', '.join(requirements(script))}` | {what} | {' | '.join(found.values())} |")
    return "\n".join(lines) + "\n"


def outcomes(script: Path, servers: Mapping[str, ServerUnderTest]) -> dict[str, str]:
    """How a client fares, by runtime: "ok", or what is wrong."""
    code, reason = install(script)
    if code:
        return dict.fromkeys(servers, f"not installed: {reason}")
    found = {}
    for runtime, server in servers.items():
        code, reason = answer(script, server.grpc_address, server.rest_url)
        found[runtime] = f"FAILED: {reason}" if code else "ok"
        print(f"{script.stem} on {runtime}: {found[runtime]}", file=sys.stderr, flush=True)
    return found


def main() -> int:
    """Runs the clients that the arguments name, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help="all, if none is named")
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.name}")
    options = parser.parse_args()
    chosen = [script for script in scripts() if script.stem in (options.clients or [script.stem])]
    flags = ("--model_name=iris", f"--model_base_path={IRIS}")
    with ExitStack() as stack, ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = {runtime: Path(stack.enter_context(tempfile.TemporaryDirectory())) for runtime in RUNTIMES}
        servers = {
            runtime: stack.enter_context(running(folder, *flags, f"--runtime={runtime}"))
            for runtime, folder in folders.items()
        }
        states = dict(zip(chosen, pool.map(lambda script: outcomes(script, servers), chosen), strict=True))
    print(table(states))
    if options.write:
        text = TABLE.sub(lambda found: found[1] + table(states) + found[2], PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(text, encoding="utf-8")
    return int(any(state.startswith("FAILED") for each in states.values() for state in each.values()))


if __name__ == "__main__":
    sys.exit(main())
