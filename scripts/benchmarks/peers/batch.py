"""04's job beside pandas, Dask, Ray Data and PySpark: the same rows through the same model."""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from scripts.benchmarks.batch import SQLITE, ItemStore, item_store
from scripts.benchmarks.harness import ARTIFACTS
from scripts.benchmarks.peers.peer import Peer, PeerRun, run_to_end, tables
from serving_common.onnx import OnnxModel, available_cpus

OURS = "04's job"
MODEL = ARTIFACTS / "iris_svc.onnx"
WHOLE, MEMORY, START, RATE = "whole run", "peak memory", "start-up", "rate"

INTRODUCTION = """\
The same rows through the same ONNX model, in runs of 500 rows, each on one thread, as many runs at once as there are
cores. The engines read Parquet files and write Parquet files; 04's job reads from a database (SQLite) and writes to it,
checks each row, and commits chunk by chunk, so that a kill costs a chunk and not the run. Start-up: from the start of
the process to the first rows at the model. Rate: rows by the rest of the run, the end of the process included. Memory:
of all its processes together, pages that they share counted in each.
"""


async def measure(run: PeerRun) -> None:
    """Every size, and at each of them all contestants in turn."""
    threads = available_cpus()
    job = run.pattern.process("job")
    run.pattern = run.pattern.with_changes("job", env={**job.env, "BATCH_THREADS": str(threads)})
    async with item_store(run, SQLITE) as store:
        for rows in run.sizes:
            engines = Engines(run, store, rows, threads)
            await run.attempt(engines.group, OURS, rows, engines.measure_job)
            for peer in run.peers("engines"):
                await run.attempt(engines.group, peer.name, rows, partial(engines.measure, peer))
            shutil.rmtree(engines.folder, ignore_errors=True)


class Engines:
    """The contestants at one size."""

    def __init__(self, run: PeerRun, store: ItemStore, rows: int, threads: int) -> None:
        self._run, self._store, self._rows = run, store, rows
        self.group = f"Batch: {rows:,} rows"
        self.folder = run.run_dir / "04" / f"rows-{rows}"
        self._env = {"THREADS": str(threads), "MODEL": str(MODEL), "INPUT": str(self.folder / "input")}

    def _add(self, what: str, seconds: float, start_s: float, peak_mb: float) -> None:
        rate = self._rows / (seconds - start_s)
        figures = {START: (start_s, "s"), RATE: (rate, "rows/s"), WHOLE: (seconds, "s"), MEMORY: (peak_mb, "MB")}
        self._run.add_at(self.group, what, self._rows, figures)

    async def measure_job(self) -> None:
        """04's job, on a freshly filled table."""
        await self._store.fill(self._rows)
        started = time.perf_counter()
        rate, peak_mb = await self._store.run_job()
        seconds = time.perf_counter() - started
        check_database(self._run.run_dir / "04/items.db")
        self._add(OURS, seconds, seconds - self._rows / rate, peak_mb)

    async def measure(self, peer: Peer) -> None:
        """One engine, from the start of its process to its end; then its predictions are checked."""
        python, name = await peer.install(self._run), f"{peer.script.stem}_{self._rows}"
        ready, output = self.folder / f"{name}.ready", self.folder / name
        if not (self.folder / "input").exists():
            await self._run_tool(peer, "write", str(self._rows))
        env = self._env | {"READY": str(ready), "RAY_USAGE_STATS_ENABLED": "0", "PYSPARK_PYTHON": python}
        arguments = (peer.script.name, self._env["INPUT"], str(output))
        started, at = time.perf_counter(), time.time()
        peak_mb = await run_to_end(
            self._store.stack, "04", peer.process(python, name, *arguments, restart=False, **env)
        )
        seconds = time.perf_counter() - started
        await self._run_tool(peer, "check", str(output))
        self._add(peer.name, seconds, ready.stat().st_mtime - at, peak_mb)
        shutil.rmtree(output)

    async def _run_tool(self, peer: Peer, *arguments: str) -> None:
        tool = replace(Peer.read(peer.script.with_name("rows.py")), name="input and check")
        python = await tool.install(self._run)
        process = tool.process(python, arguments[0], "rows.py", *arguments, restart=False, **self._env)
        await run_to_end(self._store.stack, "04", process)


def check_database(path: Path) -> None:
    """Raises ValueError if a row has no prediction, or one of the first another than ONNX Runtime's."""
    with closing(sqlite3.connect(path)) as database:
        [waiting] = database.execute("SELECT count(*) FROM items WHERE prediction IS NULL").fetchone()
        found = database.execute('SELECT "values", prediction FROM items ORDER BY id LIMIT 10000').fetchall()
    if waiting:
        raise ValueError(f"{waiting:,} rows have no prediction")
    values = np.array([json.loads(row) for row, _ in found], np.float32)
    scores = np.array([list(json.loads(prediction).values()) for _, prediction in found])
    if not np.allclose(
        scores, OnnxModel.load(MODEL, input_shape=(None, 4), output_shape=(None, 3)).run(values), atol=1e-5
    ):
        raise ValueError("predictions differ from ONNX Runtime's")


def verdict(run: PeerRun) -> list[str]:
    """When to leave 04's job for an engine, from the figures."""
    by_size = {at: found for (_, at), found in sorted(tables(run).items(), key=lambda item: item[0][1])}
    names = dict.fromkeys(name for found in by_size.values() for name in found if name != OURS)
    return [line for name in names if (line := _of_engine(name, by_size))]


def _of_engine(name: str, by_size: Mapping[float, Mapping[str, Mapping[str, float]]]) -> str:
    both = {at: (found[OURS], found[name]) for at, found in by_size.items() if OURS in found and name in found}
    if not both:
        return ""
    first = next((at for at, (ours, theirs) in both.items() if theirs[WHOLE] < ours[WHOLE]), None)
    at, (ours, theirs) = next(reversed(both.items()))
    last = f"{at:,.0f} rows: {theirs[WHOLE]:.3g} s and {theirs[MEMORY]:,.0f} MB, the job {ours[WHOLE]:.3g} s and "
    last += f"{ours[MEMORY]:,.0f} MB"
    if first is None:
        return f"- {name} is slower than the job at every measured size ({last})."
    line = f"- {name} is faster than the job from {first:,.0f} rows on ({last})"
    even = break_even(ours, theirs)
    return f"{line}; by start-up and rate at that size, from about {even:,.0f} rows on." if even else f"{line}."


def break_even(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float | None:
    """Rows for which both take as long by their start-up and rate; None if one is always the faster."""
    saved_s = 1 / ours[RATE] - 1 / theirs[RATE]
    later_s = theirs[START] - ours[START]
    return later_s / saved_s if later_s > 0 and saved_s > 0 else None
