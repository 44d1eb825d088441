"""Embeddings as a file, ``.npz`` or ``.parquet``: written as they are made, read back for an index or for numpy.

An archive holds ``ids`` (n,), ``blocks`` (n, P or Q, C) float32, ``payloads`` (n,) JSON texts, and each of the facts
(side, P, Q, C, fingerprint, model, avse) under its name; numpy.load reads it without pickle. Knows no model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avse import files
from avse.export.tables import Write, facts_of, read_table, table_writer
from avse.index import Index
from avse.index.contract import Blocks, Payload

SUFFIXES = (".npz", ".parquet")
_FACTS = ("side", "P", "Q", "C", "fingerprint", "model", "avse")
_COPY = 1 << 20


class Embeddings(NamedTuple):
    """What a file of embeddings holds: n ids, blocks (n, P or Q, C), n payloads, and of which side and model."""

    ids: list[str]
    blocks: Blocks
    payloads: list[Payload]
    facts: dict[str, Any]


def check_suffix(out: str | Path) -> None:
    """Raise ValueError for a name that does not end in ``.npz`` or ``.parquet``."""
    if Path(out).suffix not in SUFFIXES:
        raise ValueError(f"{out}: embeddings are written as .npz or .parquet: let the name end so")


def embeddings_writer(
    out: str | Path, facts: Mapping[str, Any], columns: Mapping[str, str]
) -> AbstractContextManager[Write]:
    """Return a context that yields what writes entries to ``out``, which is there, whole, when the context ends.

    Args:
        out: The file, ``.npz`` or ``.parquet``; one that is there is replaced.
        facts: As `avse.export.tables.facts_of` gives them.
        columns: Payload fields that become columns of a parquet file, with their types.

    Raises:
        ValueError: The name ends otherwise.
        ImportError: ``.parquet``, and pyarrow is not installed.
        OSError: The disk refused; a former file is as it was.
    """
    check_suffix(out)
    return _archive_writer(out, facts) if Path(out).suffix == ".npz" else table_writer(out, facts, columns)


def read_embeddings(path: str | Path, index: Index | None = None) -> Embeddings:
    """Read a file of embeddings; given the index they are meant for, check that they fit it.

    Raises:
        FileNotFoundError: No such file.
        ImportError: ``.parquet``, and pyarrow is not installed.
        ValueError: Not a file of embeddings that avse wrote, or of another side or model than the index holds.
    """
    check_suffix(path)
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file (avse encode makes one)")
    try:
        found = Embeddings(*(_read_archive(path) if Path(path).suffix == ".npz" else read_table(path)))
        if not len(found.ids) == len(found.blocks) == len(found.payloads):
            raise ValueError(f"{len(found.ids)} ids, {len(found.blocks)} blocks, {len(found.payloads)} payloads")
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: no embeddings that avse encode or avse export wrote, or damaged ({type(error).__name__}: {error})"
        ) from error
    if index is not None:
        made = {name: found.facts[name] for name in ("side", "P", "Q", "C", "fingerprint")}
        wanted = facts_of(index.layout, str(index.facts()["fingerprint"]), "")
        for name, value in made.items():
            if value != wanted[name]:
                raise ValueError(
                    f"{path} has {name} {value}, {index.location} {wanted[name]}: encode with the index's own model "
                    "(avse info INDEX names it), or make another index"
                )
    return found


@contextmanager
def _archive_writer(out: str | Path, facts: Mapping[str, Any]) -> Iterator[Write]:
    """Collect the rows in a file without a name, since an archive wants their number before the first."""
    ids: list[str] = []
    payloads: list[str] = []
    with files.replacing(out) as temporary, tempfile.TemporaryFile(dir=Path(out).parent) as rows:

        def write(names: Sequence[str], blocks: Blocks, said: Sequence[Payload]) -> None:
            rows.write(np.ascontiguousarray(blocks, "<f4").tobytes())
            ids.extend(names)
            payloads.extend(json.dumps(payload, ensure_ascii=False) for payload in said)

        yield write
        rows.seek(0)
        shape = (len(ids), facts["P"] if facts["side"] == "images" else facts["Q"], facts["C"])
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("blocks.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(rows, member, _COPY)
            archive.compression = zipfile.ZIP_DEFLATED
            for name, values in {"ids": ids, "payloads": payloads, **facts}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(values, None if values else str), allow_pickle=False)


def _read_archive(path: str | Path) -> tuple[list[str], Blocks, list[Payload], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        facts = {name: archive[name].item() for name in _FACTS}
        rows = facts["P"] if facts["side"] == "images" else facts["Q"]
        blocks = archive["blocks"].reshape(-1, rows, facts["C"])
        return archive["ids"].tolist(), blocks, [json.loads(text) for text in archive["payloads"]], facts
