# /// script
# dependencies = ["pandas==3.1.1", "pyarrow==26.0.1", "onnxruntime==1.32.0"]
#
# [tool.peer]
# name = "pandas + ONNX Runtime"
# settings = "the whole table in memory; threads run the model on 5,000 rows each"
# docs = "https://pandas.pydata.org/docs/reference/api/pandas.read_parquet.html"
# ///
"""Arguments: folders of the input and of the output."""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import iris
import pandas as pd

CHUNK = 5_000

if __name__ == "__main__":
    frame = pd.read_parquet(sys.argv[1])
    chunks = [frame.iloc[start : start + CHUNK] for start in range(0, len(frame), CHUNK)]
    with ThreadPoolExecutor(iris.THREADS) as pool:
        predictions = pd.concat(pool.map(iris.predict, chunks))
    Path(sys.argv[2]).mkdir(parents=True)
    predictions.to_parquet(f"{sys.argv[2]}/predictions.parquet", index=False)
