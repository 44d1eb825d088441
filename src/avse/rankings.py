"""Rankings of one system on one split, kept in a file: ranks for paired tests, the first hits for people to look at.

`.npz` needs numpy alone; `.parquet` has a row a query, for data frames. Knows no model.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from avse import files
from avse.bounded import check_archive, read_parquet
from avse.extras import needs
from avse.metrics import RetrievalReport, paired_differences, report_from_ranks
from avse.protocols import Scored
from avse.ranks import Ranks, first_k

FORMAT = "avse rankings 1"
SUFFIXES = (".npz", ".parquet")
COLUMNS = 512
"""Columns of the scores copied at a time."""
_ROW = re.compile(r"row-\d+")
_MATCHES = ("plain", "duplicate_aware")
_HITS = ("i2t_hits", "i2t_scores", "t2i_hits", "t2i_scores")
_RANKS = ("i2t", "t2i", "i2t_optimistic", "t2i_optimistic")


class RankingsError(ValueError):
    """A file is no rankings, or two of them do not go together."""


@dataclass(frozen=True)
class Rankings:
    """One system on one split: N images, M captions, q images that have captions."""

    meta: dict[str, Any]
    """What the figures stand with: model, data set, split, precision, seed."""
    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    text_to_image: np.ndarray
    """(M,) int64."""
    ranks: dict[str, dict[str, Ranks]]
    """Protocol -> "plain" and "duplicate_aware" -> ranks."""
    i2t_hits: np.ndarray
    """(q, K) int64, for each image with captions the first captions, best first; captions that are one text stand once,
    as the first of them."""
    i2t_scores: np.ndarray
    """(q, K) float32, their S."""
    t2i_hits: np.ndarray
    """(M, K') int64, for each caption the first images."""
    t2i_scores: np.ndarray


def rankings_of(scored: Scored, reports: Mapping[str, RetrievalReport], top: int = 100) -> Rankings:
    """Gather the rankings of a measured system.

    Args:
        scored: its scores.
        reports: protocol -> what was measured on them.
        top: how many hits of a query are kept, K.
    """
    dataset, scores = scored.dataset, scored.scores
    first_text = np.unique(scored.columns, return_index=True)[1]
    queries = np.unique(dataset.text_to_image)
    by_row = np.stack([first_k(scores[i], min(top, scores.shape[1])) for i in queries])
    by_column = np.empty((scores.shape[1], min(top, len(scores))), np.int64)
    for start in range(0, len(by_column), COLUMNS):
        for column, values in enumerate(np.ascontiguousarray(scores[:, start : start + COLUMNS].T), start):
            by_column[column] = first_k(values, by_column.shape[1])
    hits = by_column[scored.columns]
    return Rankings(
        meta=scored.meta,
        image_ids=dataset.image_ids,
        captions=dataset.captions,
        text_to_image=dataset.text_to_image,
        ranks={
            name: {"plain": report.ranks, "duplicate_aware": (report.duplicate_aware or report).ranks}
            for name, report in reports.items()
        },
        i2t_hits=first_text[by_row],
        i2t_scores=scores[queries[:, None], by_row].astype(np.float32),
        t2i_hits=hits,
        t2i_scores=scores[hits, scored.columns[:, None]].astype(np.float32),
    )


def check_target(path: str | Path, force: bool = False) -> None:
    """Refuse a file that could not be written, before the work is done.

    Raises:
        RankingsError: another suffix than .npz or .parquet.
        FileExistsError, IsADirectoryError: as `files.check_target`.
        ImportError: .parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise RankingsError(f"{path}: rankings are kept as .npz or .parquet, not as {path.suffix or 'a bare name'!r}")
    files.check_target(path, force)
    if path.suffix == ".parquet":
        _pyarrow(path)


def save_rankings(rankings: Rankings, path: str | Path, *, force: bool = False) -> Path:
    """Write rankings as .npz or .parquet, atomically; errors as in `check_target`."""
    path = Path(path)
    check_target(path, force)
    data = io.BytesIO()
    if path.suffix == ".npz":
        arrays: dict[str, Any] = {**{name: getattr(rankings, name) for name in _HITS}, **_rank_columns(rankings)}
        arrays["header"] = np.frombuffer(json.dumps(_header(rankings), ensure_ascii=False).encode(), np.uint8)
        np.savez_compressed(data, **arrays)
    else:
        _write_parquet(rankings, data, path)
    files.write_bytes(path, data.getvalue())
    return path


def load_rankings(path: str | Path) -> Rankings:
    """Read what `save_rankings` wrote.

    Raises:
        RankingsError: the file is something else, or damaged.
        FileNotFoundError: there is no such file.
        ImportError: .parquet without pyarrow.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise RankingsError(f"{path}: rankings are kept as .npz or .parquet (avse evaluate --save-rankings)")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; avse evaluate MODEL DATA --save-rankings makes one")
    pyarrow = _pyarrow(path) if path.suffix == ".parquet" else None
    try:
        header, arrays = _read_npz(path) if pyarrow is None else _read_parquet(path)
        return _assemble(header, arrays)
    except Exception as error:  # readers of arrays, archives and tables raise anything on damaged files
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RankingsError(f"{path}: not a whole rankings file of avse evaluate --save-rankings ({said})") from error


def compare(first: Rankings, second: Rankings, *, resamples: int = 1000, confidence: float = 0.95) -> dict[str, Any]:
    """Compare two systems on the same pairs, by every protocol that both were measured by.

    Returns:
        Protocol -> "plain" and "duplicate_aware" -> "first" and "second" (figures), "difference" (of rSum and each
        recall: "mean", "ci", "p") and "better" (side -> queries whose match stands higher in the first, in the second,
        or equally high).

    Raises:
        RankingsError: they were measured on other pairs, or by no common protocol; it says what differs.
    """
    if differing := _difference(first, second):
        raise RankingsError(f"the two were measured on different pairs: {differing}; evaluate both on one test set")
    common = [name for name in first.ranks if name in second.ranks]
    if not common:
        told = [" and ".join(rankings.ranks) for rankings in (first, second)]
        raise RankingsError(f"no protocol in common: {told[0]} against {told[1]}")
    found: dict[str, Any] = {}
    for name, matches in product(common, _MATCHES):
        a, b = first.ranks[name][matches], second.ranks[name][matches]
        better = {}
        for side in ("i2t", "t2i"):
            gap = getattr(a, side) - getattr(b, side)
            better[side] = {
                "first": int((gap < 0).sum()),
                "second": int((gap > 0).sum()),
                "equal": int((gap == 0).sum()),
            }
        found.setdefault(name, {})[matches] = {
            "first": report_from_ranks(a).to_dict(),
            "second": report_from_ranks(b).to_dict(),
            "difference": paired_differences([a], [b], resamples, confidence),
            "better": better,
        }
    return found


def _difference(a: Rankings, b: Rankings) -> str:
    """Say what differs between the pairs of two rankings; empty when nothing does.

    Features without ids have rows only (row-0, row-1, …): then captions and their images alone must agree.
    """
    pairs = [("images", a.image_ids, b.image_ids), ("captions", a.captions, b.captions)]
    if any(ids and all(map(_ROW.fullmatch, ids)) for ids in (a.image_ids, b.image_ids)):
        pairs = [("images", ("",) * len(a.image_ids), ("",) * len(b.image_ids)), pairs[1]]
    for what, ours, theirs in pairs:
        if len(ours) != len(theirs):
            splits = [f"{r.meta.get('dataset')}, split {r.meta.get('split')}" for r in (a, b)]
            return f"{len(ours):,} {what} ({splits[0]}) against {len(theirs):,} ({splits[1]})"
        for place, (mine, other) in enumerate(zip(ours, theirs), 1):
            if mine != other:
                return f"of the {what} number {place} is {mine!r} in the one and {other!r} in the other"
    if not np.array_equal(a.text_to_image, b.text_to_image):
        place = int(np.flatnonzero(a.text_to_image != b.text_to_image)[0])
        return f"caption {a.captions[place]!r} belongs to another image"
    return ""


def _header(rankings: Rankings) -> dict[str, Any]:
    starts = {name: both["plain"].fold_starts.tolist() for name, both in rankings.ranks.items()}
    return {
        "format": FORMAT,
        "meta": rankings.meta,
        "image_ids": rankings.image_ids,
        "captions": rankings.captions,
        "text_to_image": rankings.text_to_image.tolist(),
        "fold_starts": starts,
    }


def _rank_columns(rankings: Rankings) -> dict[str, np.ndarray]:
    """Return the ranks as named columns: protocol.matches.side."""
    return {
        f"{name}.{matches}.{side}": getattr(both[matches], side)
        for name, both in rankings.ranks.items()
        for matches, side in product(_MATCHES, _RANKS)
    }


def _assemble(header: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Rankings:
    if header["format"] != FORMAT:
        raise ValueError(f"format {header['format']!r}, this version reads {FORMAT!r}")
    for key in ("image_ids", "captions"):
        if not isinstance(header[key], list) or not all(isinstance(text, str) for text in header[key]):
            raise ValueError(f"{key} is no list of texts")
    owners = np.array(header["text_to_image"], np.int64)
    if owners.shape != (len(header["captions"]),) or not isinstance(header["meta"], dict):
        raise ValueError("text_to_image is not one image a caption, or there are no facts")
    if len(owners) and not 0 <= owners.min() <= owners.max() < len(header["image_ids"]):
        raise ValueError(f"text_to_image must lie in 0..{len(header['image_ids']) - 1}, found {owners.max()}")
    queries = np.unique(owners)
    ranks: dict[str, dict[str, Ranks]] = {}
    for name, starts in header["fold_starts"].items():
        for matches in _MATCHES:
            columns = {side: np.asarray(arrays[f"{name}.{matches}.{side}"], np.int64) for side in _RANKS}
            if any(len(column) != len(queries if side[0] == "i" else owners) for side, column in columns.items()):
                raise ValueError(f"ranks of {name} are not one a query")
            whole = Ranks(
                **columns, image_of_query=queries, image_of_text=owners, fold_starts=np.array(starts, np.int64)
            )
            ranks.setdefault(name, {})[matches] = whole
    hits = {name: arrays[name] for name in _HITS}
    return Rankings(header["meta"], tuple(header["image_ids"]), tuple(header["captions"]), owners, ranks=ranks, **hits)


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as archive:
        check_archive(path, archive.zip)
        arrays = {name: archive[name] for name in archive.files}
    return json.loads(arrays.pop("header").tobytes()), arrays


def _pyarrow(path: Path) -> Any:
    with needs("parquet", f"{path}: .parquet", "; .npz needs nothing"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow


def _write_parquet(rankings: Rankings, target: io.BytesIO, path: Path) -> None:
    """Write a row a query: images with captions first, then captions; hits are ids and texts, for people."""
    pa = _pyarrow(path)
    queries = np.unique(rankings.text_to_image)
    sides = [len(queries), len(rankings.captions)]
    names = pa.array([*rankings.image_ids, *rankings.captions])
    hits = [*(rankings.i2t_hits + len(rankings.image_ids)), *rankings.t2i_hits]
    offsets = np.cumsum([0, *map(len, hits)]).astype(np.int32)
    scores = np.concatenate([rankings.i2t_scores.ravel(), rankings.t2i_scores.ravel()])
    columns = {
        "direction": pa.array(np.repeat(["i2t", "t2i"], sides)).dictionary_encode(),
        "query": pa.array([*(rankings.image_ids[i] for i in queries), *rankings.captions]),
        "image": pa.array([rankings.image_ids[i] for i in [*queries, *rankings.text_to_image]]),
    }
    ranks = _rank_columns(rankings)
    for name, matches, order in product(rankings.ranks, _MATCHES, ("", "_optimistic")):
        both = [ranks[f"{name}.{matches}.{side}{order}"] for side in ("i2t", "t2i")]
        columns[f"{name}.{matches}.rank{order}"] = pa.array(np.concatenate(both) + 1)
    columns["hits"] = pa.ListArray.from_arrays(offsets, names.take(pa.array(np.concatenate(hits))))
    columns["scores"] = pa.ListArray.from_arrays(offsets, pa.array(scores))
    table = pa.table(columns).replace_schema_metadata({"avse": json.dumps(_header(rankings), ensure_ascii=False)})
    pa.parquet.write_table(table, target, compression="zstd")


def _read_parquet(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    table = read_parquet(_pyarrow(path), path)
    header = json.loads(table.schema.metadata[b"avse"])
    queries = len(set(header["text_to_image"]))
    arrays: dict[str, np.ndarray] = {}
    for name, matches, order in product(header["fold_starts"], _MATCHES, ("", "_optimistic")):
        column = table[f"{name}.{matches}.rank{order}"].to_numpy() - 1
        arrays[f"{name}.{matches}.i2t{order}"], arrays[f"{name}.{matches}.t2i{order}"] = np.split(column, [queries])
    for side, rows in (("i2t", table.slice(0, queries)), ("t2i", table.slice(queries))):
        known = header["captions"] if side == "i2t" else header["image_ids"]
        place = {text: number for number, text in reversed(list(enumerate(known)))}
        hits = rows["hits"].combine_chunks().flatten().dictionary_encode()
        numbers = np.array([place[text] for text in hits.dictionary.to_pylist()], np.int64)
        arrays[f"{side}_hits"] = numbers[hits.indices.to_numpy()].reshape(rows.num_rows, -1)
        arrays[f"{side}_scores"] = rows["scores"].combine_chunks().flatten().to_numpy().reshape(rows.num_rows, -1)
    return header, arrays
