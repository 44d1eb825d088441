"""Features made beforehand: ``{split}_ims.npy``, N x G x W, with ``{split}_caps.txt``; G x W is 36 x 2048 for BUTD.

The file of features stays on the disk and is mapped. Either its rows are the images, with as many captions for each, or
its rows are repeated once a caption, and every five that follow one another are one image, of which the first is kept.
``{split}_ids.txt`` gives the images' ids where it is there; without it they are called row-0, row-1 and so on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from avse.data.dataset import FeatureRows, PairDataset, Skip
from avse.data.entries import no_split
from avse.data.research import Texts, read_texts, splits_of

ENDING = "_ims.npy"
_REPEATS = 5
_SAMPLE = 64


def find(folder: Path) -> list[Path]:
    """Return the first file of features in a folder: those of all its splits belong together."""
    return sorted(folder.glob(f"*{ENDING}"))[:1]


def accepts(path: Path) -> bool:
    """Tell whether a file is one of this layout by its name."""
    return path.name.endswith(ENDING)


def load(path: Path, split: str, name: str) -> PairDataset:
    """Return one split of the folder of ``path``, with `PairDataset.features`.

    Raises:
        ValueError: No such split, an array or counts that do not fit, or nothing usable in it.
    """
    splits = splits_of(path.parent, ENDING)
    if split == "all":
        raise ValueError(
            f"{path.parent}: each split has a file of features of its own: name one of {', '.join(splits)}"
        )
    if split not in splits:
        raise no_split(path.parent, split, {name: file.name for name, file in splits.items()})
    path = splits[split]
    caps = path.with_name(path.name.removesuffix(ENDING) + "_caps.txt")
    if not caps.is_file():
        raise ValueError(f"{path}: no {caps.name} beside it: one caption a line is wanted, in the order of the rows")
    features, ids = FeatureRows(path, np.empty(0, np.int64)), caps.with_name(caps.name.replace("_caps.", "_ids."))
    array = features.open()
    if not len(array) or not 0 < array.shape[1] <= array.shape[2]:
        raise ValueError(
            f"{path}: features (images, G, W) are wanted, such as G = 36 regions of width W = 2048 or 2054, with G not "
            f"above W; found the shape {array.shape}"
        )
    texts, rows = _rows(path, array, caps, ids.is_file())
    return _dataset(path, split, name, texts, rows)


def _rows(path: Path, array: NDArray[np.floating], caps: Path, has_ids: bool) -> tuple[Texts, NDArray[np.int64]]:
    """Return the texts and, for each image, its row."""
    texts = read_texts(caps, len(array)) if not has_ids else read_texts(caps)
    rows, captions = len(array), len(texts.captions)
    if texts.ids is None and rows == captions:
        if rows % _REPEATS:
            raise ValueError(
                f"{path}: {rows:,} rows and as many captions: rows repeated once a caption stand in fives. One caption "
                f"an image? List the images in {texts.ids_path.name}, one id a row"
            )
        counts = [_REPEATS] * (rows // _REPEATS)
        texts = Texts(caps, texts.captions, counts, None, [], texts.ids_path)
    if len(texts.counts) == rows:
        return texts, np.arange(rows, dtype=np.int64)
    if rows != captions:
        raise ValueError(
            f"{path}: {rows:,} rows, but {len(texts.counts):,} images in {texts.ids_path.name} and {captions:,} "
            "captions: a row an image or a row a caption is wanted"
        )
    firsts = np.cumsum([0, *texts.counts[:-1]], dtype=np.int64)
    _check_repeats(path, array, firsts)
    return texts, firsts


def _check_repeats(path: Path, array: NDArray[np.floating], firsts: NDArray[np.int64]) -> None:
    """Raise where rows of one image differ at their start; the whole of them would be tens of gigabytes."""
    owner = np.zeros(len(array), np.int64)
    owner[firsts] = firsts
    owner = np.maximum.accumulate(owner)
    starts = np.array(array[:, 0, :_SAMPLE])
    differ = np.flatnonzero((starts != starts[owner]).any(axis=1))
    if len(differ):
        row, first = int(differ[0]), int(owner[differ[0]])
        raise ValueError(
            f"{path}: row {row} differs from row {first}, though there are as many rows as captions, so that both are "
            "features of one image. If each row is an image, give the ids of all images, or five captions for each"
        )


def _dataset(path: Path, split: str, name: str, texts: Texts, rows: NDArray[np.int64]) -> PairDataset:
    ids = texts.ids or [f"row-{row}" for row in rows.tolist()]
    kept: list[int] = []
    captions: list[str] = []
    owners: list[int] = []
    skipped: list[Skip] = []
    start = 0
    for i, count in enumerate(texts.counts):
        own = [texts.captions[k].strip() for k in range(start, start + count)]
        skipped += [
            Skip(ids[i], f"empty caption: {texts.path.name}:{start + k + 1}") for k, text in enumerate(own) if not text
        ]
        start += count
        if not any(own):
            skipped.append(Skip(ids[i], "no caption"))
            continue
        own = [text for text in own if text]
        owners += [len(kept)] * len(own)
        kept.append(i)
        captions += own
    if not kept:
        raise ValueError(f"{texts.path}: nothing usable in split {split!r}: every caption is empty")
    return PairDataset(
        name=name,
        split=split,
        root=path.parent,
        image_ids=tuple(ids[i] for i in kept),
        image_paths=(path,) * len(kept),
        captions=tuple(captions),
        text_to_image=np.array(owners, np.int64),
        skipped=tuple(skipped),
        records=tuple({"split": split, **({"id": texts.ids[i]} if texts.ids else {})} for i in kept),
        features=FeatureRows(path, rows[kept]),
    )
