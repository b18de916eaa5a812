"""Pictures in a pipeline that is Ray Data, Spark or Dask already: `Worker` computes the rows of each batch.

    python examples/cluster/own_pipelines.py ray|spark|dask WEIGHTS LIST.parquet OUT

LIST has a column `uri`, of paths or addresses; OUT becomes a folder of Parquet files. A job of `convnets-torch batch`
loses and repeats nothing whatever dies; here the engine decides what happens then.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from convnets_torch.batch import Worker
from convnets_torch.batch.rows import schema

OUTPUTS = ("classes", "vector")


def with_ray_data(weights: str, table: str, output: str) -> None:
    """Actors hold the network; leave Ray a CPU for reading, or nothing ever starts."""
    import ray

    rows = ray.data.read_parquet(table).repartition(target_num_rows_per_block=256)
    rows.map_batches(
        Worker,
        fn_constructor_args=[weights, OUTPUTS],
        batch_size=256,
        batch_format="pyarrow",
        concurrency=1,
        num_cpus=1,
    ).write_parquet(output)


def plain_schema() -> Any:
    """The columns of rows, with plain text for the kinds of errors, since Spark and Dask take no categories."""
    import pyarrow as pa

    return pa.schema([(each.name, pa.string() if each.name == "error_kind" else each.type) for each in schema()])


def with_spark(weights: str, table: str, output: str) -> None:
    """Each Python process of Spark loads the network once per partition."""
    import pyarrow as pa
    from pyspark.sql import SparkSession
    from pyspark.sql.pandas.types import from_arrow_schema

    worker, plain = Worker(weights, OUTPUTS, fetch_threads=8), plain_schema()

    def compute(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            yield from worker(pa.Table.from_batches([batch])).cast(plain).to_batches()

    spark = SparkSession.builder.getOrCreate()
    spark.read.parquet(table).mapInArrow(compute, from_arrow_schema(plain)).write.parquet(output)


def with_dask(weights: str, table: str, output: str) -> None:
    """One partition after another in each worker process."""
    import dask.dataframe as dd

    worker, plain = Worker(weights, OUTPUTS, fetch_threads=8), plain_schema()

    def compute(frame: Any) -> Any:
        return worker(frame).astype({"error_kind": object})

    example = plain.empty_table().to_pandas()
    frame = dd.read_parquet(table, columns=["uri"])
    frame.map_partitions(compute, meta=example).to_parquet(output, schema=plain, write_index=False)


if __name__ == "__main__":
    engine, *arguments = sys.argv[1:]
    {"ray": with_ray_data, "spark": with_spark, "dask": with_dask}[engine](*arguments)
