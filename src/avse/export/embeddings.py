"""Embeddings as a file, ``.npz`` or ``.parquet``: written as they are made, read back for an index or for numpy.

An archive holds ``blocks`` (n, P or Q, C) float32, and each of the facts (side, P, Q, C, fingerprint, model, avse)
under its name; numpy.load reads it without pickle. Ids and payloads (JSON) are texts end to end in UTF-8: text i is
``ids[id_offsets[i] : id_offsets[i + 1]]``, uint8 (all bytes,) and int64 (n + 1,), so that a long one among many costs
no more than itself; ``payloads`` and ``payload_offsets`` likewise. Knows no model.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avse import files
from avse.bounded import check_archive
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
    except ImportError:
        raise
    except Exception as error:  # readers of arrays, archives and tables raise anything on damaged files
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{path}: no embeddings that avse encode or avse export wrote, or damaged ({said})") from error
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
    ids, payloads = _Texts(), _Texts()
    with files.replacing(out) as temporary, tempfile.TemporaryFile(dir=Path(out).parent) as rows:

        def write(names: Sequence[str], blocks: Blocks, said: Sequence[Payload]) -> None:
            rows.write(np.ascontiguousarray(blocks, "<f4").tobytes())
            ids.extend(names)
            payloads.extend(json.dumps(payload, ensure_ascii=False) for payload in said)

        yield write
        rows.seek(0)
        shape = (len(ids.offsets) - 1, facts["P"] if facts["side"] == "images" else facts["Q"], facts["C"])
        with zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("blocks.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                shutil.copyfileobj(rows, member, _COPY)
            archive.compression = zipfile.ZIP_DEFLATED
            texts = {**ids.arrays("ids", "id_offsets"), **payloads.arrays("payloads", "payload_offsets")}
            for name, values in {**texts, **facts}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(values), allow_pickle=False)


class _Texts:
    """Texts end to end in UTF-8, and where each begins and ends."""

    def __init__(self) -> None:
        self._bytes, self.offsets = bytearray(), array("q", [0])

    def extend(self, texts: Iterable[str]) -> None:
        for text in texts:
            self._bytes += text.encode()
            self.offsets.append(len(self._bytes))

    def arrays(self, texts: str, offsets: str) -> dict[str, NDArray[Any]]:
        """Return both under these names: uint8 (all bytes,) and int64 (n + 1,)."""
        return {texts: np.frombuffer(self._bytes, np.uint8), offsets: np.frombuffer(self.offsets, np.int64)}


def _texts(data: bytes, offsets: NDArray[np.int64]) -> list[str]:
    bounds = offsets.tolist()
    return [data[start:end].decode() for start, end in zip(bounds, bounds[1:])]


def _read_archive(path: str | Path) -> tuple[list[str], Blocks, list[Payload], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        check_archive(path, archive.zip)
        facts = {name: archive[name].item() for name in _FACTS}
        rows = facts["P"] if facts["side"] == "images" else facts["Q"]
        blocks = archive["blocks"].reshape(-1, rows, facts["C"])
        ids = _texts(archive["ids"].tobytes(), archive["id_offsets"])
        payloads = _texts(archive["payloads"].tobytes(), archive["payload_offsets"])
        return ids, blocks, [json.loads(text) for text in payloads], facts
