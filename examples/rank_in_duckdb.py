"""Rank in SQL: the blocks of an index as a table of DuckDB, S as a query. Needs duckdb and pyarrow.

python examples/rank_in_duckdb.py "a red flower" --index runs/demo/index.avse
"""

import argparse

import duckdb
import numpy as np
import pyarrow as pa

from avse import Index

BEST = "SELECT p.id, q.block, max(array_inner_product(p.v, q.v)) AS best FROM pictures p, asked q GROUP BY ALL"
SQL = f"SELECT id, sum(best) AS s FROM ({BEST}) GROUP BY id ORDER BY s DESC, id LIMIT 10"


def table(ids: list[str], blocks: np.ndarray) -> pa.Table:
    """Make a row a block: whose it is, its number, its C floats; blocks are (n, P or Q, C)."""
    n, count, width = blocks.shape
    owner, number, values = np.repeat(ids, count), np.tile(np.arange(count), n), pa.array(blocks.ravel())
    return pa.table([owner, number, pa.FixedSizeListArray.from_arrays(values, width)], ["id", "block", "v"])


def main() -> None:
    """Read the blocks, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentence")
    parser.add_argument("--index", default="runs/demo/index.avse")
    args = parser.parse_args()
    with Index.open(args.index) as index, duckdb.connect() as database:
        ids = [name for page in index.entries() for name, _ in page]
        database.register("pictures", table(*index.get(ids)[:2]))
        database.register("asked", table(["asked"], index.encoder.encode_texts([args.sentence])))
        for name, s in database.sql(SQL).fetchall():
            print(f"{s:.3f}  {name}")


if __name__ == "__main__":
    main()
