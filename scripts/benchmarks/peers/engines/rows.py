# /// script
# dependencies = ["pandas==3.1.1", "pyarrow==26.0.1", "onnxruntime==1.32.0"]
# ///
"""The rows of all engines. Arguments: `write` and how many, or `check` and the folder with the predictions."""

import os
import sys
from pathlib import Path

import iris
import numpy as np
import pandas as pd

FOLDER = Path(os.environ["INPUT"])
DIFFERENT = 10_000
FILES = 8  # at least: an engine shares files out among its workers
ROWS_IN_A_FILE = 100_000

# The same as scripts.benchmarks.batch writes into 04's database.
VALUES = np.random.default_rng(0).uniform(0.1, 8, (DIFFERENT, 4)).round(1).astype(np.float32)


def write(count: int) -> None:
    FOLDER.mkdir(parents=True)
    step = min(ROWS_IN_A_FILE, -(-count // FILES))
    for start in range(0, count, step):
        ids = np.arange(start, min(start + step, count))
        frame = pd.DataFrame(VALUES[ids % DIFFERENT], columns=iris.INPUTS)
        frame.insert(0, "id", ids)
        frame.to_parquet(FOLDER / f"{start:09}.parquet", index=False)


def check(folder: str) -> None:
    found = pd.read_parquet(folder)
    ids = found["id"].to_numpy()
    count = len(pd.read_parquet(FOLDER, columns=["id"]))
    if not np.array_equal(np.sort(ids), np.arange(count)):
        sys.exit(f"{len(ids):,} predictions, or wrong ids, for {count:,} rows")
    difference = np.abs(found[iris.OUTPUTS].to_numpy() - iris.scores(VALUES)[ids % DIFFERENT]).max()
    if not difference < 1e-5:
        sys.exit(f"predictions differ from ONNX Runtime's by up to {difference:.3g}")


if __name__ == "__main__":
    write(int(sys.argv[2])) if sys.argv[1] == "write" else check(sys.argv[2])
