"""Training pictures that stand in another split too, the same or nearly: figures on that split would promise too much.

Knows data sets and pictures; no model, no training, and not what a caption says. Two pictures are compared by a
perceptual hash of 8x8 colours, which finds a few candidates among all pairs, and these place by place, by 32x32 greys
and the 8x8 colours.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from avse import files
from avse.data import FeatureRows, PairDataset
from avse.images import ImageError, read_image

Kind = Literal["same file", "same pixels", "near-identical", "same features"]

NEAR = 50
"""Largest distance of two pictures that count as near-identical; how it was measured stands in docs/log."""
_ALIKE, _MOST = 0.92, 4
"""Least correlation of the hashes of candidates, and how many of them a training picture may have in a split."""
_FLAT = 2.0
"""Grey levels of spread below which a picture is of one colour, and only its content says anything."""
_FLOOR = 0.15
"""Added to the spread of a place, in variances of the picture, so that noise in a plain place weighs little."""
_NOISE = 8
"""Distance up to which pixels may be the same: a JPEG decoded at a smaller size, as here, is some 3 from itself."""
_CHUNK, _PAIRS, _SAVED = 512, 64, 8192
_RECORD = np.dtype(
    [("path", "V16"), ("stamp", "<i8", 2), ("file", "V16"), ("grey", "u1", (32, 32)), ("color", "u1", (8, 8, 3))]
)
_NAME = "pictures1"  # another number where the fields, or what they hold, change


@dataclass(frozen=True)
class Leak:
    """A training picture and its twin in another split.

    Attributes:
        image_id: The picture in the training split.
        twin_id: The picture in the other split.
        split: The other split.
        kind: ``same file`` and ``same features`` by every byte; ``same pixels`` where only the file differs;
            ``near-identical`` where it was encoded anew, scaled, brightened or cut a little, or is a variant.
        distance: 0 to `NEAR`: hundredths of the spread by which the two differ in the place where they differ most.
    """

    image_id: str
    twin_id: str
    split: str
    kind: Kind
    distance: int


def find_leaks(
    train: PairDataset,
    others: Mapping[str, PairDataset],
    *,
    cache: Path | None = None,
    workers: int = 2,
    progress: bool = True,
) -> tuple[Leak, ...]:
    """Return the training pictures that stand in another split, in the order of training, each once a split.

    Pictures that cannot be read are left out: whoever trains on them lists them. Pictures and features are compared
    with their like; mirrored pictures are not found.

    Args:
        train: The training split.
        others: The other splits by name.
        cache: Folder for ``leaks.npz``, what is known of each picture, by path, size and time; made where missing.
        workers: Threads that read and decode.
        progress: Show a bar on stderr.

    Raises:
        OSError: The cache cannot be written, or a file of features cannot be read.
        ValueError: A file of features holds something else.
    """
    alike = {name: other for name, other in others.items() if (other.features is None) == (train.features is None)}
    if train.features is not None:
        found = [_same_rows(train, name, other) for name, other in alike.items()]
    else:
        signed = _sign([train, *alike.values()], cache, workers, progress)
        found = [
            _same_pictures(train, name, other, signed[0], there)
            for (name, other), there in zip(alike.items(), signed[1:])
        ]
    return tuple(leaks[i] for i in range(train.num_images) for leaks in found if i in leaks)


def describe(leaks: Sequence[Leak], left_out: bool = False) -> str:
    """Return some lines on at least one leak: how many of which kind, the first three by name, and the way out.

    Args:
        leaks: What `find_leaks` found.
        left_out: They are left out of training.
    """
    pictures = len({leak.image_id for leak in leaks})
    counts = Counter((leak.split, leak.kind) for leak in leaks)
    told = ", ".join(f"{count:,} in {split} ({kind})" for (split, kind), count in counts.items())
    out = (
        "they are left out of training"
        if left_out
        else "figures there promise too much; --set data.leaks=drop leaves them out of training, "
        "--set data.leaks=ignore does not look, if they are meant so"
    )
    lines = [f"{pictures:,} training picture{'s stand' if pictures != 1 else ' stands'} in another split too: {told}"]
    lines += [
        f"  {leak.image_id} is {leak.twin_id} of {leak.split} ({leak.kind}, distance {leak.distance})"
        for leak in leaks[:3]
    ]
    return "\n".join([*lines, *([f"  and {len(leaks) - 3:,} more"] if len(leaks) > 3 else []), out])


def drop(train: PairDataset, leaks: Sequence[Leak]) -> PairDataset:
    """Return the training split without the pictures that leak.

    Raises:
        ValueError: Nothing is left.
    """
    leaking = {leak.image_id for leak in leaks}
    kept = [i for i, image_id in enumerate(train.image_ids) if image_id not in leaking]
    if not kept:
        raise ValueError(
            f"all {train.num_images:,} training pictures stand in another split too, none is left to train on; give "
            "other splits, or --set data.leaks=ignore"
        )
    return train.subset(kept)


# Features.


def _same_rows(train: PairDataset, split: str, other: PairDataset) -> dict[int, Leak]:
    """Return the leaks by position: rows are found by their first region, and compared whole."""
    assert train.features is not None and other.features is not None
    ours, theirs = train.features.open(), other.features.open()
    if ours.shape[1:] != theirs.shape[1:]:
        return {}
    there: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
    for position, (row, digest) in enumerate(_first_regions(other.features, theirs)):
        there[digest].append((position, row))
    leaks = {}
    for i, (row, digest) in enumerate(_first_regions(train.features, ours)):
        twin = next((j for j, twin in there.get(digest, ()) if np.array_equal(ours[row], theirs[twin])), None)
        if twin is not None:
            leaks[i] = Leak(train.image_ids[i], other.image_ids[twin], split, "same features", 0)
    return leaks


def _first_regions(source: FeatureRows, features: NDArray[np.floating[Any]]) -> Iterator[tuple[int, bytes]]:
    for row in source.rows.tolist():
        yield row, hashlib.sha256(features[row, 0].astype("<f4").tobytes()).digest()


# Pictures.


def _same_pictures(
    train: PairDataset, split: str, other: PairDataset, ours: dict[int, np.void], theirs: dict[int, np.void]
) -> dict[int, Leak]:
    """Return the leaks by position, of the records of both splits by position."""
    there: dict[bytes, int] = {}
    for j, record in theirs.items():
        there.setdefault(record["file"].tobytes(), j)
    leaks = {}
    for i, record in ours.items():
        if (j := there.get(record["file"].tobytes(), -1)) >= 0:
            leaks[i] = Leak(train.image_ids[i], other.image_ids[j], split, "same file", 0)
    places, twins = [i for i in ours if i not in leaks], list(theirs)
    if not places or not twins:
        return leaks
    one, two = np.stack([ours[i] for i in places]), np.stack([theirs[j] for j in twins])
    near: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for a, b in _candidates(one, two):
        for place, twin, distance in zip(a.tolist(), b.tolist(), _distances(one[a], two[b]).tolist()):
            if distance <= NEAR:
                near[places[place]].append((distance, twins[twin]))
    for i, found in near.items():
        distance, j = min(found)
        close = [twin for distance, twin in sorted(found) if distance <= _NOISE]
        same = next((twin for twin in close if _same_pixels(train.image_paths[i], other.image_paths[twin])), None)
        if same is not None:
            leaks[i] = Leak(train.image_ids[i], other.image_ids[same], split, "same pixels", 0)
        else:
            leaks[i] = Leak(train.image_ids[i], other.image_ids[j], split, "near-identical", distance)
    return leaks


def _candidates(one: NDArray[np.void], two: NDArray[np.void]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield positions in both of pairs whose hashes correlate, at most `_PAIRS` pairs at a time."""
    there = _hashes(two).T
    most = min(_MOST, len(two))
    for start in range(0, len(one), _CHUNK):
        alike = _hashes(one[start : start + _CHUNK]) @ there
        rows = np.flatnonzero(alike.max(axis=1) >= _ALIKE)
        nearest = np.argpartition(-alike[rows], most - 1, axis=1)[:, :most]
        a, b = np.repeat(rows, most), nearest.ravel()
        chosen = alike[a, b] >= _ALIKE
        a, b = a[chosen] + start, b[chosen]
        for first in range(0, len(a), _PAIRS):
            yield a[first : first + _PAIRS], b[first : first + _PAIRS]


def _hashes(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Return perceptual hashes (n, 192): 8x8 colours about their mean, of length 1; zeros for a flat picture."""
    colors = records["color"].astype(np.float32)
    colors -= colors.mean(axis=(1, 2), keepdims=True)
    flat = colors.reshape(len(colors), -1)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    plain = records["grey"].std(axis=(1, 2), dtype=np.float32)[:, None] < _FLAT
    return np.where(plain, 0, flat / np.maximum(length, 1)).astype(np.float32)


def _distances(one: NDArray[np.void], two: NDArray[np.void]) -> NDArray[np.int64]:
    """Return how much the pictures of n pairs differ at most, over 8x8 places, in hundredths (n,).

    Brightness, contrast and tint of the whole picture do not count, nor do 2 % cut off either picture: each place takes
    the cut that fits its greys best.
    """
    a, b = one["grey"].astype(np.float32), two["grey"].astype(np.float32)
    plain_a, plain_b = _standard(a), _standard(b)
    spread = (_spread(plain_a) + _spread(plain_b)) / 2
    error = np.full_like(spread, np.inf)
    for cut, other in ((a, plain_b), (b, plain_a)):
        for rows, columns in product(_CUTS, repeat=2):
            error = np.minimum(error, _places((_standard(rows @ cut @ columns.T) - other) ** 2))
    error += ((_tints(one) - _tints(two)) ** 2).mean(axis=3)
    return np.rint(100 * (error / (spread + _FLOOR)).max(axis=(1, 2))).astype(np.int64)


def _tints(records: NDArray[np.void]) -> NDArray[np.float32]:
    """Return how far colors (n, 8, 8, 3) are from their grey, about the picture's mean, in spreads of its greys."""
    colors = records["color"].astype(np.float32)
    tints = colors - colors.mean(axis=3, keepdims=True)
    tints -= tints.mean(axis=(1, 2), keepdims=True)
    spread = records["grey"].std(axis=(1, 2), dtype=np.float32)
    return tints / np.maximum(spread, 1)[:, None, None, None]


def _standard(greys: NDArray[Any]) -> NDArray[np.float32]:
    greys = greys - greys.mean(axis=(1, 2), keepdims=True)
    return greys / np.maximum(np.sqrt((greys**2).mean(axis=(1, 2), keepdims=True)), 1)


def _places(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the means (n, 8, 8) over squares of 4x4."""
    means: NDArray[np.float32] = np.matmul(np.matmul(_SQUARES, values), _SQUARES.T)
    return means


def _spread(greys: NDArray[np.float32]) -> NDArray[np.float32]:
    return _places(greys**2) - _places(greys) ** 2


def _cut(first: float, last: float) -> NDArray[np.float32]:
    """Return the matrix (32, 32) that stretches what lies between two shares of a side over the whole side."""
    at = np.clip((first + (np.arange(32) + 0.5) / 32 * (last - first)) * 32 - 0.5, 0, 31)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(32))).astype(np.float32)


_SQUARES: NDArray[np.float32] = np.kron(np.eye(8), np.full((1, 4), 0.25)).astype(np.float32)
_CUTS = tuple(_cut(first, last) for first, last in ((0, 1), (0, 0.98), (0.02, 1), (0.01, 0.99)))


def _same_pixels(one: Path, two: Path) -> bool:
    try:
        return np.array_equal(np.asarray(read_image(one)), np.asarray(read_image(two)))
    except ImageError:  # gone since, or damaged behind what was read
        return False


# What is known of each picture.


def _sign(parts: Sequence[PairDataset], cache: Path | None, workers: int, progress: bool) -> list[dict[int, np.void]]:
    """Return for each part the records of its readable pictures by position; new ones are kept in the cache."""
    store = cache / "leaks.npz" if cache is not None else None
    known = _load(store) if store is not None else {}
    paths = list(dict.fromkeys(path for part in parts for path in part.image_paths))
    keys = [hashlib.blake2b(os.fsencode(path.absolute()), digest_size=16).digest() for path in paths]
    records: dict[Path, np.void] = {}
    bar = tqdm(total=len(paths), desc="looking for leaks", unit="picture", disable=not progress, leave=False)
    with bar, ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(paths), _SAVED):
            chunk, of_chunk = paths[start : start + _SAVED], keys[start : start + _SAVED]
            fresh = False
            for path, key, record in zip(chunk, of_chunk, pool.map(_record, chunk, of_chunk, map(known.get, of_chunk))):
                bar.update()
                if record is not None:
                    fresh |= record is not known.get(key)
                    records[path] = known[key] = record
            if fresh and store is not None:
                _save(store, known)
    return [{i: records[path] for i, path in enumerate(part.image_paths) if path in records} for part in parts]


def _record(path: Path, key: bytes, old: np.void | None) -> np.void | None:
    """Return what is known of a picture, the old record where the file is as it was; None where it cannot be read."""
    try:
        facts = path.stat()
        stamp = facts.st_size, facts.st_mtime_ns
        if old is not None and tuple(old["stamp"].tolist()) == stamp:
            return old
        data = path.read_bytes()
        small = read_image(data, draft=(64, 64)).resize((32, 32), Image.Resampling.BILINEAR)
    except (OSError, ImageError):
        return None
    grey, color = np.asarray(small.convert("L")), np.asarray(small.resize((8, 8), Image.Resampling.BOX))
    record = np.zeros(1, _RECORD)
    record["path"], record["file"] = np.void(key), np.void(hashlib.sha256(data).digest()[:16])
    record["stamp"], record["grey"], record["color"] = stamp, grey, color
    signed: np.void = record[0]
    return signed


def _load(store: Path) -> dict[bytes, np.void]:
    """Return the records by key; none where the file is missing, damaged or of another version: it is made anew."""
    try:
        with np.load(store, allow_pickle=False) as arrays:
            records = arrays[_NAME]
    except Exception:  # numpy's and zip's readers raise anything on damaged files
        return {}
    return dict(zip(records["path"].tolist(), records)) if records.dtype == _RECORD else {}


def _save(store: Path, known: Mapping[bytes, np.void]) -> None:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {_NAME: np.stack(list(known.values()))}
    np.savez(stream, **arrays)
    files.write_bytes(store, stream.getvalue())
