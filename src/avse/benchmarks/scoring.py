"""`avse bench scoring`: the matrix and the first k of it, against what a user could pick and what the machine can do.

Every way is checked against float64 before it is timed, and all ways of a measure are timed in turns. What few queries,
ranks and large collections cost is in `avse.benchmarks.queries`. Knows unit blocks, random or of a trained model; the
model is only asked for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avse.benchmarks import agreement, in_process, interleaved, limits, queries, rivals, units
from avse.benchmarks.rows import EINSUM, at_least, at_most, empty_row, sizes_of
from avse.scoring import aeom, topk
from avse.scoring.tiles import fast

Array = NDArray[np.float32]
PARTS = ("matrix", "top-k", "queries", "ranks")
_DIRECTIONS = (("texts", "texts ask"), ("images", "images ask"))
_LIBRARIES = {"fp32": "numpy fp32", "bf16": "torch bf16"}
"""What multiplies in `avse.scoring.tiles`."""
_PATIENCE = 2000
"""Texts at most for the ways that are several times slower: their rates are compared."""

_AMAX, _RIVAL = "einsum + amax", f"{EINSUM}, topk"
_LIBRARY_WAYS = {
    "sentence-transformers maxsim": ("sentence_transformers", rivals.sentence_transformers),
    "maxsim-cpu": ("maxsim_cpu", rivals.maxsim_cpu),
}


@dataclass(frozen=True)
class Sizes:
    """What is measured; the issue's sizes are 5,000 images, 25,000 texts and a gallery of 100,000."""

    images: int = 1000
    texts: int = 5000
    shape: tuple[int, int, int] = (8, 4, 256)
    gallery: int = 20000
    """Images that one query and `batch` queries are asked against."""
    batch: int = 64
    k: int = 10
    tenfold: bool = False
    """Whether one query also asks ten times the gallery, from files."""


def measure_scoring(
    sizes: Sizes | None = None,
    *,
    runs: int = 7,
    threads: int = 1,
    trained: Sequence[tuple[str, str]] = (),
    parts: Sequence[str] = PARTS,
) -> Iterator[dict[str, Any]]:
    """Measure each part in a process of its own, held to `threads` cores.

    Args:
        sizes: what is measured.
        runs: timed turns, of which the median is taken.
        threads: threads and cores.
        trained: folders of a model and of a data set, on whose embeddings (all splits) the first k are measured too.
        parts: some of `PARTS`.

    Yields:
        Rows (`avse.benchmarks.rows`), a part as soon as it is measured.

    Raises:
        RuntimeError: a way differs from float64.
        ValueError: more is asked for than there is.
    """
    sizes = sizes or Sizes()
    if sizes.k > min(sizes.images, sizes.texts, sizes.gallery):
        raise ValueError(f"the first {sizes.k} of {min(sizes.images, sizes.texts, sizes.gallery)} are asked for")
    if "ranks" in parts and sizes.texts < sizes.images:
        raise ValueError(f"{sizes.images} images, {sizes.texts} texts: for ranks each image needs one")
    if "matrix" in parts:
        yield from in_process(threads, measure_matrix, sizes, runs)
    if "top-k" in parts:
        yield from in_process(threads, measure_topk, sizes, runs, "random")
        for model, data in trained:
            yield from in_process(threads, measure_topk, sizes, runs, *_name(model, data))
    if "queries" in parts:
        yield from in_process(threads, queries.measure_queries, sizes.gallery, sizes.shape, sizes.k, sizes.batch, runs)
        if sizes.tenfold:
            yield from queries.measure_tenfold(sizes.gallery, sizes.shape, sizes.k, runs, threads)
    if "ranks" in parts:
        yield from queries.measure_ranks(sizes.images, sizes.texts, sizes.shape, runs, threads)


def measure_matrix(sizes: Sizes, runs: int) -> list[dict[str, Any]]:
    """Time the whole score matrix (n, m) of random unit blocks in every way, and the machine's matrix products."""
    blocks, queries, width = sizes.shape
    images = torch.from_numpy(units(0, sizes.images, blocks, width))
    texts = torch.from_numpy(units(1, sizes.texts, queries, width))
    some = texts[:_PATIENCE]
    ways: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
        "avse fp32": (lambda: aeom(images, texts), "fp32"),
        "avse bf16": (lambda: aeom(images, texts, "bf16"), "bf16"),
        EINSUM: (lambda: rivals.einsum_max(images, texts), "fp32"),
        _AMAX: (lambda: rivals.einsum_amax(images, some), "fp32"),
    }
    lacking = {}
    for way, (module, score) in _LIBRARY_WAYS.items():
        if reason := rivals.missing(module):
            lacking[way] = reason
        else:
            ways[way] = (lambda score=score: score(images, some)), "fp32"  # type: ignore[misc]
    rows, columns = agreement.sample(sizes.images), agreement.sample(sizes.texts)
    truth = agreement.matrix(images[rows].numpy(), texts[columns].numpy())
    errors = {}
    for way, (run, precision) in ways.items():
        whole = run()[rows]
        there = columns < whole.shape[1]
        found, expected = whole[:, columns[there]].float().numpy(), truth[:, there]
        errors[way] = agreement.check(way, found, expected, agreement.tolerance(precision, queries))
    products = limits.products()
    timed: dict[Any, Callable[[], object]] = {way: run for way, (run, _) in ways.items()}
    medians = interleaved(timed | {key: limit.run for key, limit in products.items()}, runs)
    at = f"{sizes.images:,} x {sizes.texts:,}, P,Q,C = {sizes_of(sizes.shape)}"
    per_text = 2 * sizes.images * blocks * queries * width / 1e9
    found_rows = []
    peaks = _peaks(products, medians)
    for way in [*ways, *lacking]:
        row = empty_row("matrix", way, at, unit="GFLOP/s", against=EINSUM)
        found_rows.append(row)
        if way in lacking:
            row["note"] = lacking[way]
            continue
        count = len(some) if way in (_AMAX, *_LIBRARY_WAYS) else sizes.texts
        row |= {"seconds": medians[way], "rate": per_text * count / medians[way], "error": errors[way]}
        row["ratio"] = row["rate"] * medians[EINSUM] / (per_text * sizes.texts)
        row["note"] = f"the first {count:,} texts" if count < sizes.texts else row["note"]
        if way.startswith("avse "):
            precision, row["note"] = _computed(way)
            row["of_limit"] = row["rate"] / peaks[_LIBRARIES[precision]][0]
    found_rows[0]["targets"] = [at_least(1.6, found_rows[0], "ratio"), at_least(0.8, found_rows[0], "of_limit")]
    found_rows[1]["targets"] = [at_least(3.0, found_rows[1], "ratio"), at_most(4e-3, found_rows[1], "error")]
    for library, (rate, shape) in peaks.items():
        note = f"best of {len(limits.SHAPES)} shapes"
        found_rows.append(empty_row("limit", f"{library} product", shape, rate=rate, unit="GFLOP/s", note=note))
    return found_rows


def measure_topk(
    sizes: Sizes, runs: int, data: str, model: str | None = None, dataset: str | None = None
) -> list[dict[str, Any]]:
    """Time the first k of every text among the images and of every image among the texts.

    Args:
        sizes: of random unit blocks; with a model only k counts.
        runs: timed turns.
        data: the name of the embeddings in the rows.
        model: folder of a model, whose embeddings of `dataset` are taken.
        dataset: folder of a data set.
    """
    if model is None or dataset is None:
        blocks, queries, width = sizes.shape
        images, texts = units(0, sizes.images, blocks, width), units(1, sizes.texts, queries, width)
    else:
        images, texts = _encode(model, dataset)
    found: list[dict[str, Any]] = []
    k, text_blocks = min(sizes.k, len(images), len(texts)), texts.shape[1]
    ways: dict[tuple[str, str], Callable[[], tuple[Array, NDArray[np.int64]]]] = {}
    errors, differing = {}, {}
    for side, name in _DIRECTIONS:
        asked, documents = (texts, images) if side == "texts" else (images, texts)
        searches = _searches(images, texts, k, side)
        ways |= {(name, way): search for way, search in searches.items()}
        chosen = agreement.sample(len(asked))
        truth = agreement.matrix(
            images if side == "texts" else images[chosen], texts[chosen] if side == "texts" else texts
        )
        truth = truth.T if side == "texts" else truth
        exact = None
        for way, search in searches.items():
            scores, ids = search()
            here, expected = chosen, truth
            if way == _RIVAL:
                here = chosen[chosen < len(scores)]
                expected = truth[: len(here)] if side == "texts" else truth[:, :_PATIENCE]
            precision = way.removeprefix("avse ") if way.startswith("avse ") else "fp32"
            allowed = agreement.tolerance(precision, text_blocks)
            errors[name, way] = agreement.check_first(f"{way}, {name}", (scores[here], ids[here]), expected, allowed)
            if way == _RIVAL:
                continue
            rows = np.broadcast_to(np.arange(len(asked))[:, None], ids.shape)
            own = agreement.pairs(images, texts, *((ids, rows) if side == "texts" else (rows, ids)))
            exact = own if exact is None else exact
            differing[name, way] = agreement.differing(own, exact, text_blocks)
    medians = interleaved(ways, runs)
    at = f"{len(images):,} x {len(texts):,}, P,Q,C = {images.shape[1]},{sizes_of(texts.shape[1:])}, k = {k}"
    per_text = 2 * len(images) * images.shape[1] * text_blocks * images.shape[2] / 1e9
    part = min(_PATIENCE, len(texts))
    for (name, way), seconds in medians.items():
        row = empty_row(f"top-k, {name}", way, at, data=data, unit="GFLOP/s", against=_RIVAL)
        count = part if way == _RIVAL else len(texts)
        row |= {"seconds": seconds, "rate": per_text * count / seconds, "error": errors[name, way]}
        row["ratio"] = row["rate"] * medians[name, _RIVAL] / (per_text * part)
        if way == _RIVAL:
            row["note"] = f"the first {part:,} texts" if part < len(texts) else row["note"]
        else:
            row |= {"differing": differing[name, way], "note": _computed(way)[1]}
        if way == "avse int8":
            row["targets"] = [at_least(4.5, row, "ratio"), at_most(1e-4, row, "differing")]
        found.append(row)
    return found


def _searches(
    images: Array, texts: Array, k: int, side: str
) -> dict[str, Callable[[], tuple[Array, NDArray[np.int64]]]]:
    """Name -> the first k documents of every query; the first one is exact."""
    left, right = torch.from_numpy(images), torch.from_numpy(texts[:_PATIENCE])

    def einsum() -> tuple[Array, NDArray[np.int64]]:
        scores = rivals.einsum_max(left, right)
        found = (scores.T if side == "texts" else scores).topk(k, dim=1)
        return found.values.numpy(), found.indices.numpy()

    def ours(precision: Any) -> tuple[Array, NDArray[np.int64]]:
        asked, documents = (texts, images) if side == "texts" else (images, texts)
        return topk(asked, documents, k, queries_are=side, precision=precision)  # type: ignore[arg-type]

    return {
        "avse fp32": lambda: ours("fp32"),
        "avse bf16": lambda: ours("bf16"),
        "avse int8": lambda: ours("int8"),
        _RIVAL: einsum,
    }


def _computed(way: str) -> tuple[str, str | None]:
    """Return the precision that one of our ways is really computed in, and what to say where that is another."""
    wanted: Any = way.removeprefix("avse ")
    return (wanted, None) if fast(wanted) else ("fp32", f"in fp32: {wanted} is no faster on this processor")


def _peaks(products: dict[tuple[str, str], limits.Limit], medians: dict[Any, float]) -> dict[str, tuple[float, str]]:
    """Return library -> the best rate in GFLOP/s, and its shape."""
    best: dict[str, tuple[float, str]] = {}
    for key, limit in products.items():
        best[key[0]] = max(best.get(key[0], (0.0, "")), (limit.work / medians[key] / 1e9, key[1]))
    return best


def _name(model: str, data: str) -> tuple[str, str, str]:
    """Return what the rows call a model's embeddings, by the last folder of each path, and both folders."""
    return f"{Path(model).resolve().name} on {Path(data).resolve().name}", model, data


def _encode(model: str, dataset: str) -> tuple[Array, Array]:
    """Embed all splits of a data set: images (n, P, C) and distinct texts (m, Q, C)."""
    from avse.data import load_dataset
    from avse.evaluate import encode_inputs
    from avse.inputs import open_inputs
    from avse.start import open_model

    opened = open_model(model)
    return encode_inputs(opened, open_inputs(opened, load_dataset(dataset, split="all")))
