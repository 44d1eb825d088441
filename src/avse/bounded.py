"""Reading what others wrote, and what a few bytes could make fill the memory: YAML, archives, Parquet.

Knows formats, none of avse's files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import yaml

SPARE, TIMES = 256 << 20, 50
"""Bytes that any file may unpack to, and how many times its own size a larger one may."""
_ROWS = 16
"""Rows of a table that are unpacked before their size is looked at."""


def check_unpacked(path: str | Path, size: int) -> None:
    """Refuse what unpacks to more bytes than a file of this length can mean.

    Raises:
        ValueError: above `SPARE` and above `TIMES` the file.
    """
    limit = max(SPARE, TIMES * Path(path).stat().st_size)
    if size > limit:
        raise ValueError(f"{size:,} bytes or more unpacked, at most {limit:,} are read of a file of this length")


def check_archive(path: str | Path, archive: ZipFile) -> None:
    """Refuse an archive whose members together are too large by `check_unpacked`, before any is unpacked."""
    check_unpacked(path, sum(member.file_size for member in archive.infolist()))


def read_parquet(pyarrow: Any, path: str | Path, columns: Sequence[str] | None = None) -> Any:
    """Read columns of a Parquet file (all of them by default) a few rows at a time, until they grow too large.

    Args:
        pyarrow: the module, with its part `parquet`.
        path: the file.
        columns: names.

    Returns:
        pyarrow's Table.

    Raises:
        ValueError: as `check_unpacked`, or (with a class of pyarrow's) it is no Parquet file.
    """
    batches, size = [], 0
    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS, columns=columns):
            size += batch.nbytes
            check_unpacked(path, size)
            batches.append(batch)
        schema = batches[0].schema if batches else file.schema_arrow
        return pyarrow.Table.from_batches(batches, schema).replace_schema_metadata(file.schema_arrow.metadata)


def load_yaml(text: str) -> Any:
    """Read a document of plain values at most 50 levels deep, without aliases: nine lines of them can mean 10⁹ values.

    Raises:
        ValueError: it is not YAML, has an alias or lies too deep; one line that says what, and where.
    """
    try:
        return yaml.load(text, _Plain)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(_why(error)) from error


class _Plain(yaml.SafeLoader):
    levels = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse an alias, and what lies too deep."""
        self.levels += 1
        if self.levels > 50 or self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias (*name), or more than 50 levels: neither is read")
        node = super().compose_node(parent, index)
        self.levels -= 1
        return node


def _why(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())[:200]
