# /// script
# dependencies = [
#   "ray[data]==2.60.0", "pandas==3.1.1", "pyarrow==26.0.1", "onnxruntime==1.32.0",
#   "typing-extensions==4.16.0", # imported by Ray Data, not required by it
# ]
#
# [tool.peer]
# name = "Ray Data"
# settings = "a local cluster without dashboard, map_batches on pandas blocks"
# docs = "https://docs.ray.io/en/latest/data/api/doc/ray.data.Dataset.map_batches.html"
# ///
"""Arguments: folders of the input and of the output."""

import sys

import iris
import ray

if __name__ == "__main__":
    ray.init(num_cpus=iris.THREADS, include_dashboard=False, log_to_driver=False)
    rows = ray.data.read_parquet(sys.argv[1])
    rows.map_batches(iris.predict, batch_format="pandas", batch_size=None).write_parquet(f"local://{sys.argv[2]}")
