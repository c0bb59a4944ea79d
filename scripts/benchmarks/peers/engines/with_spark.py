# /// script
# dependencies = ["pyspark==4.3.0", "pandas==3.1.1", "pyarrow==26.0.1", "onnxruntime==1.32.0"]
#
# [tool.peer]
# name = "PySpark"
# settings = "local mode, mapInPandas"
# docs = "https://spark.apache.org/docs/latest/api/python/tutorial/sql/arrow_pandas.html"
# program = "java"
# ///
"""Arguments: folders of the input and of the output."""

import sys
from collections.abc import Iterator

import iris
import pandas as pd
from pyspark.sql import SparkSession

SCHEMA = ", ".join(["id long", *(f"{name} float" for name in iris.OUTPUTS)])


def predict(frames: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    return map(iris.predict, frames)


if __name__ == "__main__":
    builder = SparkSession.builder.master(f"local[{iris.THREADS}]").config("spark.ui.enabled", "false")
    # The host's name may have no address.
    spark = builder.config("spark.driver.host", "127.0.0.1").getOrCreate()
    spark.read.parquet(sys.argv[1]).mapInPandas(predict, SCHEMA).write.parquet(sys.argv[2])
    spark.stop()
