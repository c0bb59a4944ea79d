"""Where a request's CPU time goes, in 06 and in 03's POST /predict: `python -m scripts.benchmarks.profile`.

A ladder of apps, each with one layer more than the one before it; what a layer costs is the difference. The apps are in
the patterns' tests/layers.py, and how they are measured in serving_testing/layers.py: in turns, the fastest batch of
each. With --output the table is written into profile.json there, and docs/bench/profile.md shows it.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.benchmarks.tracing import stack_of
from scripts.devstack.machine import described
from scripts.devstack.patterns import PATTERNS
from scripts.devstack.steps import FLOWERS
from scripts.devstack.table import ROOT, Pattern

LADDERS: Mapping[str, Pattern] = {
    "service": PATTERNS["06"].without("proxy", *(f"service_{label}" for label in FLOWERS)),
    "proxy": PATTERNS["06"].without("proxy"),
    "post": PATTERNS["03"].without("proxy", "worker"),
}
"""What has to run meanwhile."""


async def measure(name: str, rounds: int) -> dict[str, float]:
    """Microseconds per request of each app of the ladder."""
    pattern = LADDERS[name]
    async with stack_of(pattern) as stack:
        urls = stack.urls
        services = (f"{label}={urls[f'PORT_06_SERVICE_{label.upper()}']}" for label in FLOWERS)
        env = {
            "MODEL_FILEPATH": str(ROOT / f"models/artifacts/{PATTERNS['06'].artifacts[0]}.onnx"),
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(stack.ports.get("PORT_03_REDIS")),
            "ROUNDS": str(rounds),
        }
        if name == "proxy":
            env["SERVICES"] = ",".join(services)
        with TemporaryDirectory() as folder:
            output, lines = Path(folder) / "found.json", Path(folder) / "log"
            with lines.open("w") as log:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.layers", name, output),
                    cwd=ROOT / pattern.folder,
                    env=os.environ | env,
                    stdout=log,
                )
                if await process.wait():
                    raise RuntimeError(f"tests.layers {name} has failed: {lines.read_text()[-2000:]}")
            found: dict[str, float] = json.loads(output.read_text())
            return found


def table(costs: Mapping[str, float]) -> str:
    """A row for each layer with what it adds, the whole, and what that is compared with."""
    rows, before = [], 0.0
    for layer, cost in costs.items():
        if layer.startswith("= "):
            rows.append(f"| {layer.removeprefix('= ')} |  | {cost:,.0f} |")
        else:
            rows.append(f"| {layer} | {cost - before:,.0f} | {cost:,.0f} |")
            before = cost
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ladders", nargs="*", default=list(LADDERS), help=", ".join(LADDERS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    found = {"machine": described(), "rounds": options.rounds, "load": f"{os.getloadavg()[2]:.0f}"}
    for name in options.ladders:
        found[name] = table(asyncio.run(measure(name, options.rounds)))
        print(f"{name}\n{found[name]}", flush=True)
    if options.output:
        (options.output / "profile.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
