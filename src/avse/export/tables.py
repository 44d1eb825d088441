"""Embeddings as Parquet: an index's entries, or what `avse encode` made, for DuckDB, pyarrow and whatever reads it.

A row an entry: id, blocks (a list of lists of C float32), payload (exact JSON text), and each payload field that holds
texts, numbers or truth values alone as a column of its own, for conditions. The schema's metadata ``avse`` says of
which side and model. Knows the index's contract, no model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avse import __version__, files
from avse.bounded import read_parquet
from avse.export import check_apart
from avse.extras import needs
from avse.index import Index
from avse.index.contract import Blocks, Layout, Payload
from avse.index.living import progress_bar

Write = Callable[[Sequence[str], Blocks, Sequence[Payload]], None]
"""Takes the next n entries: ids, blocks (n, P or Q, C), payloads."""
FIXED = ("id", "blocks", "payload")
"""The columns that are always there; a payload field of such a name stands in the JSON alone."""
_ROW_GROUP = 1000
_KINDS = {str: "string", bool: "bool", int: "int64", float: "float64"}

RANKING_SQL = """
SELECT id,
  list_sum([list_max([list_inner_product(v::DOUBLE[], t) for v in blocks]) for t in $query::DOUBLE[][]]) AS score
FROM entries
ORDER BY score DESC, id
LIMIT $k
""".strip()
"""For DuckDB: the k best pictures for a sentence by S = Σ_j max_i <v_i, t_j>, in float64; ``$query`` is its (Q, C).

``entries`` is the file, as by ``CREATE VIEW entries AS FROM 'photos.parquet'``; a WHERE stands before ORDER BY.
"""
RANKING_SQL_TEXTS = """
SELECT id,
  list_sum([list_max([list_inner_product(v, t::DOUBLE[]) for v in $query::DOUBLE[][]]) for t in blocks]) AS score
FROM entries
ORDER BY score DESC, id
LIMIT $k
""".strip()
"""The same for a file of sentences; ``$query`` is a picture's (P, C)."""


def write_parquet(index: str | Path, out: str | Path, force: bool = False) -> dict[str, Any]:
    """Write all entries of an index, in any store, to one file; memory does not grow with the index.

    Returns:
        The number of ``entries`` and ``bytes``, the ``columns``, and what the metadata says.

    Raises:
        FileExistsError: ``out`` is there and not ``force``.
        FileNotFoundError, StoreError: No index, one that is open elsewhere, or a damaged entry, which is named.
        ValueError: ``out`` lies in the index.
        ImportError: pyarrow is not installed.
        OSError: The disk refused; a former file is as it was.
    """
    files.check_target(out, force)
    if "://" not in str(index):
        check_apart(index, out)
    arrow()
    count = 0
    with Index.open(index) as opened:
        said = opened.facts()
        facts = facts_of(opened.layout, str(said["fingerprint"]), str(said["model"]))
        columns = columns_of(payload for page in opened.entries() for _, payload in page)
        bar = progress_bar(len(opened), opened.side[:-1], True)
        with bar, table_writer(out, facts, columns) as write:
            for page in opened.entries():
                ids, blocks, payloads = opened.get([name for name, _ in page])
                write(ids, blocks, payloads)
                count += len(ids)
                bar.update(len(ids))
    return {"entries": count, "bytes": Path(out).stat().st_size, "columns": [*FIXED, *columns], **facts}


def facts_of(layout: Layout, fingerprint: str, model: str) -> dict[str, Any]:
    """Return what a file of embeddings says of itself: side, P, Q, C, the model and its fingerprint, avse's version."""
    sizes = {"P": layout.num_image_blocks, "Q": layout.num_text_blocks, "C": layout.block_width}
    return {"side": layout.side, **sizes, "fingerprint": fingerprint, "model": model, "avse": __version__}


def columns_of(payloads: Iterable[Payload]) -> dict[str, str]:
    """Return the payload fields that can be columns, with the type of each; null goes with every type.

    >>> columns_of([{"year": 2019, "tags": ["a"]}, {"year": 2020.5, "name": "b"}, {"year": None, "ID": 1}])
    {'name': 'string', 'year': 'float64'}
    """
    found: dict[str, set[str]] = {}
    for payload in payloads:
        for name, value in payload.items():
            if value is not None:
                found.setdefault(name, set()).add(_KINDS.get(type(value), ""))
    taken = Counter([*FIXED, "", *(name.casefold() for name in found)])  # SQL knows no case
    columns = {}
    for name, kinds in sorted(found.items()):
        kind = "float64" if kinds == {"int64", "float64"} else "" if len(kinds) > 1 else min(kinds)
        if kind and taken[name.casefold()] == 1:
            columns[name] = kind
    return columns


@contextmanager
def table_writer(out: str | Path, facts: Mapping[str, Any], columns: Mapping[str, str]) -> Iterator[Write]:
    """Yield what writes entries to ``out``, some thousand at a time; the file is there, whole, when the block ends.

    Args:
        out: The file; one that is there is replaced.
        facts: As `facts_of` gives them.
        columns: Payload fields that become columns, as `columns_of` gives them.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: The disk refused; a former file is as it was.
    """
    pa = arrow()
    blocks_type = pa.list_(pa.list_(pa.float32(), facts["C"]))
    types = [("id", pa.string()), ("blocks", blocks_type), ("payload", pa.string())]
    types += [(name, pa.type_for_alias(kind)) for name, kind in columns.items()]
    schema = pa.schema(types, metadata={"avse": json.dumps(facts, ensure_ascii=False)})

    with files.replacing(out) as temporary:
        with pa.parquet.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=False) as file:
            held: list[tuple[str, Blocks, Payload]] = []

            def write(ids: Sequence[str], blocks: Blocks, payloads: Sequence[Payload]) -> None:
                held.extend(zip(ids, blocks, payloads))
                if len(held) >= _ROW_GROUP:
                    flush()

            def flush() -> None:
                file.write_table(_table(schema, held))
                held.clear()

            yield write
            if held:
                flush()


def _table(schema: Any, entries: list[tuple[str, Blocks, Payload]]) -> Any:
    """Return entries of id, blocks (P or Q, C) and payload as a table of this schema."""
    pa = arrow()
    ids, blocks, payloads = zip(*entries)
    rows, width = blocks[0].shape
    inner = pa.FixedSizeListArray.from_arrays(pa.array(np.stack(blocks).reshape(-1)), width)
    starts = pa.array(np.arange(len(ids) + 1, dtype=np.int32) * rows)
    said = [json.dumps(payload, ensure_ascii=False) for payload in payloads]
    arrays = [pa.array(ids), pa.ListArray.from_arrays(starts, inner), pa.array(said)]
    for field in list(schema)[len(FIXED) :]:
        values = [payload.get(field.name) for payload in payloads]
        if field.type == pa.float64():  # a whole number may stand among them
            values = [None if value is None else float(value) for value in values]
        arrays.append(pa.array(values, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def read_table(path: str | Path) -> tuple[list[str], Blocks, list[Payload], dict[str, Any]]:
    """Return ids, blocks (n, P or Q, C), payloads and facts of a file that `table_writer` made.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError, KeyError, TypeError: The file is none of these.
    """
    table = read_parquet(arrow(), path, FIXED)
    facts = json.loads(table.schema.metadata[b"avse"])
    flat = table["blocks"].combine_chunks().flatten().flatten().to_numpy(zero_copy_only=False)
    rows = facts["P"] if facts["side"] == "images" else facts["Q"]
    blocks = np.array(flat, np.float32).reshape(table.num_rows, rows, facts["C"])
    return table["id"].to_pylist(), blocks, [json.loads(text) for text in table["payload"].to_pylist()], facts


def arrow() -> Any:
    """Return pyarrow with its parquet part.

    Raises:
        ImportError: It is not installed; the message has its pip line.
    """
    with needs("parquet", "a parquet file", "; .npz needs nothing"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow
