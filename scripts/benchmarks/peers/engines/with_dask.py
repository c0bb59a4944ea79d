# /// script
# dependencies = ["dask[dataframe]==2026.8.0", "pandas==3.1.1", "pyarrow==26.0.1", "onnxruntime==1.32.0"]
#
# [tool.peer]
# name = "Dask"
# settings = "the threaded scheduler, a partition for each file"
# docs = "https://docs.dask.org/en/stable/scheduling.html#local-threads"
# ///
"""Arguments: folders of the input and of the output."""

import sys

import dask
import dask.dataframe as dd
import iris

META = {"id": "int64"} | dict.fromkeys(iris.OUTPUTS, "float32")

if __name__ == "__main__":
    with dask.config.set(scheduler="threads", num_workers=iris.THREADS):
        dd.read_parquet(sys.argv[1]).map_partitions(iris.predict, meta=META).to_parquet(sys.argv[2])
