"""Rank in SQL: an index as a table of DuckDB, S as a query. Needs duckdb and pyarrow.

python examples/rank_in_duckdb.py "a red flower" --index runs/demo/index.avse
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb

from avse import Index
from avse.export.tables import RANKING_SQL, write_parquet


def main() -> None:
    """Write the table, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sentence")
    parser.add_argument("--index", default="runs/demo/index.avse")
    args = parser.parse_args()
    with Index.open(args.index) as index:
        query = index.encoder.encode_texts([args.sentence])[0].tolist()  # (Q, C)
    with TemporaryDirectory() as folder, duckdb.connect() as database:
        table = Path(folder) / "index.parquet"
        write_parquet(args.index, table)
        database.execute(f"CREATE VIEW entries AS FROM '{table}'")
        for name, s in database.execute(RANKING_SQL, {"query": query, "k": 10}).fetchall():
            print(f"{s:.3f}  {name}")


if __name__ == "__main__":
    main()
