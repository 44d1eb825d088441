"""One query and a few against a large gallery, a gallery in files, and the ranks of a whole evaluation.

Each is called in a process of its own by `avse.benchmarks.scoring`. Knows random unit blocks, no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.benchmarks import agreement, in_process, interleaved, limits, peak_bytes, rivals, units
from avse.benchmarks.rows import EINSUM, at_least, at_most, empty_row, sizes_of, target
from avse.scoring import Quantised, quantise, rank_in_folds, topk

Array = NDArray[np.float32]
Shape = tuple[int, int, int]
OURS, NUMBA, FAISS = "avse int8 + rerank", "numba fp32 scan", "faiss flat inner product"
ASKED = 8
"""Different queries that one-query ways ask in turn: how many rows are looked at again depends on the query."""
FOLDS = 5
_PART = 10000


def measure_queries(gallery: int, shape: Shape, k: int, batch: int, runs: int) -> list[dict[str, Any]]:
    """Time the first k of a gallery of random unit blocks for one text, and for `batch` texts at once."""
    blocks, text_blocks, width = shape
    images, texts = units(0, gallery, blocks, width), units(1, batch, text_blocks, width)
    documents = quantise(images)
    at = f"{gallery:,} images, P,Q,C = {sizes_of(shape)}, k = {k}"
    return [*_one_query(images, documents, texts[:ASKED], k, runs, at), *_batch(images, documents, texts, k, runs, at)]


def measure_tenfold(gallery: int, shape: Shape, k: int, runs: int, threads: int) -> Iterator[dict[str, Any]]:
    """Time one query against a gallery and against ten times as many images, both mapped from the same files.

    Raises:
        OSError: the folder of temporary files is too small.
        RuntimeError: the first k are not float64's.
    """
    blocks, text_blocks, width = shape
    images, wanted = 10 * gallery, 10 * gallery * blocks * width * 5
    if (free := shutil.disk_usage(gettempdir()).free) < 1.05 * wanted:
        raise OSError(
            f"{images:,} images need {wanted / 1e9:.1f} GB in {gettempdir()}, which has {free / 1e9:.1f} GB free: "
            "name a larger folder by TMPDIR, or ask a smaller --gallery"
        )
    with TemporaryDirectory() as folder:
        step, truth = in_process(threads, _write_gallery, folder, images, shape)
        found = in_process(threads, _ask_gallery, folder, images, shape, step, k, runs)
    rows, allowed = [], agreement.tolerance("int8", text_blocks)
    for size, first, seconds in zip((gallery, images), found["first"], found["seconds"]):
        at = f"images in files, P,Q,C = {sizes_of(shape)}, k = {k}"
        row = empty_row("one query", f"{OURS}, {size:,} images", at, unit="GB/s", note="quantised beforehand")
        row |= {"seconds": seconds, "rate": size * blocks * width / seconds / 1e9}
        row["error"] = agreement.check_first(row["way"], first, truth[:, :size], allowed)
        row["differing"] = agreement.differing_ids(first[1], truth[:, :size], text_blocks)
        rows.append(row)
    times, peak = rows[1]["seconds"] / rows[0]["seconds"], found["peak"]
    rows[1] |= {"peak_mib": round(peak / 2**20), "note": "quantised beforehand; peak with torch loaded"}
    rows[1]["targets"] = [target(f"<= 11x the time of {gallery:,} images", times, times <= 11)]
    if images == 1_000_000:
        rows[1]["targets"].append(target("peak <= 2.6 GB", peak / 1e9, peak <= 2.6e9))
    yield from rows


def measure_ranks(images: int, texts: int, shape: Shape, runs: int, threads: int) -> Iterator[dict[str, Any]]:
    """Time the ranks of both directions, ours with five folds; the peak of each way is of a process of its own.

    Raises:
        RuntimeError: a sampled rank is not float64's, ties of float32 aside.
    """
    at = f"{images:,} x {texts:,}, P,Q,C = {sizes_of(shape)}"
    peaks = {way: in_process(threads, _peak_of, way, images, texts, shape) for way in _RANKINGS}
    medians = in_process(threads, _time_ranks, images, texts, shape, runs)
    rows = []
    for way, seconds in medians.items():
        row = empty_row("ranks", way, at, against=SORTED, note="no folds", seconds=seconds)
        row |= {"ratio": medians[SORTED] / seconds, "peak_mib": round(peaks[way] / 2**20)}
        rows.append(row)
    rows[0]["note"] = f"{FOLDS} folds in the same pass" if images % FOLDS == 0 else "no folds"
    rows[0]["targets"] = [at_most(1024, rows[0], "peak_mib")]
    yield from rows


def _one_query(images: Array, documents: Quantised, texts: Array, k: int, runs: int, at: str) -> list[dict[str, Any]]:
    """Ways of one query: the same bytes of float32, or their int8."""
    dense = images.reshape(len(images), -1)
    ways: dict[str, tuple[str, str, Callable[[ExitStack], rivals.Search]]] = {
        OURS: ("numpy", "quantised beforehand", lambda _: partial(_first, documents, k)),
        NUMBA: ("numba", "", lambda _: rivals.scan_search(rivals.numba_scan(), images, k)),
        "torch fp32": ("torch", "", lambda _: rivals.torch_search(images, k)),
        "maxsim-cpu": ("maxsim_cpu", "", lambda _: rivals.scan_search(rivals.maxsim_cpu_scan(), images, k)),
        "Qdrant Edge, exact": (
            "qdrant_edge",
            "",
            lambda stack: stack.enter_context(rivals.qdrant_search(images, k)),
        ),
        FAISS: ("faiss", "another score: one vector of P·C an image", lambda _: rivals.faiss_search(images, k)),
    }
    truths = agreement.matrix(images, texts).T
    rows, searches, checked = [], {}, {}
    with ExitStack() as stack:
        for way, (module, note, opener) in ways.items():
            row = empty_row("one query", way, at, unit="GB/s", against=NUMBA, note=note)
            rows.append(row)
            if reason := rivals.missing(module):
                row["note"] = reason
                continue
            search, asked, truth = opener(stack), list(texts), truths
            if way == FAISS:
                asked = list(dense[: len(texts)])
                truth = np.stack([dense.astype(np.float64) @ one for one in asked])
            searches[way] = search, cycle(asked)
            scores, ids = (np.stack(part) for part in zip(*map(search, asked)))
            checked[way] = _checked(way, (scores, ids), truth, texts.shape[1])
        reads = limits.reads(images)
        timed: dict[str, Callable[[], object]] = {
            way: partial(_ask_next, search, asked) for way, (search, asked) in searches.items()
        }
        medians = interleaved(timed | {name: limit.run for name, limit in reads.items()}, runs)
    name, limit = max(reads.items(), key=lambda item: item[1].work / medians[item[0]])
    peak = limit.work / medians[name] / 1e9
    for row in rows:
        if (way := row["way"]) not in searches:
            continue
        seconds, size = medians[way], documents.values.nbytes if way == OURS else images.nbytes
        row |= {"seconds": seconds, "rate": size / seconds / 1e9, **checked[way]}
        row["of_limit"] = row["rate"] / peak
        row["ratio"] = medians[NUMBA] / seconds if NUMBA in medians else None
    share = None if NUMBA not in medians else medians[OURS] / medians[NUMBA]
    rows[0]["targets"] = [target(f"<= 0.45 of the {NUMBA}'s time", share, None if share is None else share <= 0.45)]
    return [*rows, empty_row("limit", "reading memory", at, rate=peak, unit="GB/s", note=name)]


def _batch(images: Array, documents: Quantised, texts: Array, k: int, runs: int, at: str) -> list[dict[str, Any]]:
    """Ways of a few queries at once."""
    baseline = "torch fp32 tiles"
    ways: dict[str, Callable[[], tuple[Array, NDArray[np.int64]]]] = {
        OURS: lambda: topk(texts, documents, k, queries_are="texts", precision="int8"),
        "avse fp32": lambda: topk(texts, images, k, queries_are="texts"),
        baseline: lambda: rivals.torch_tiles(images, texts, k),
    }
    truth = agreement.matrix(images, texts).T
    checked = {way: _checked(way, search(), truth, texts.shape[1]) for way, search in ways.items()}
    medians = interleaved(ways, runs)
    work = 2 * images.size * texts.shape[0] * texts.shape[1]
    rows = []
    for way, seconds in medians.items():
        row = empty_row(f"{len(texts)} queries", way, at, unit="GFLOP/s", against=baseline, **checked[way])
        row |= {"seconds": seconds, "rate": work / seconds / 1e9, "ratio": medians[baseline] / seconds}
        rows.append(row)
    rows[0] |= {"targets": [at_least(3.0, rows[0], "ratio")], "note": "quantised beforehand"}
    return rows


def _checked(
    way: str, found: tuple[Array, NDArray[np.int64]], truth: NDArray[np.float64], text_blocks: int
) -> dict[str, float]:
    """Check float32 scores and their documents; return the fields of a row."""
    error = agreement.check_first(way, found, truth, agreement.tolerance("fp32", text_blocks))
    return {"error": error, "differing": agreement.differing_ids(found[1], truth, text_blocks)}


def _first(documents: Quantised, k: int, text: Array) -> tuple[Array, NDArray[np.int64]]:
    scores, ids = topk(text[None], documents, k, queries_are="texts", precision="int8")
    return scores[0], ids[0]


def _ask_next(search: rivals.Search, texts: Iterator[Array]) -> None:
    search(next(texts))


def _write_gallery(folder: str, images: int, shape: Shape) -> tuple[float, NDArray[np.float64]]:
    """Write float32 and int8 blocks part by part; return the step and the queries' scores in float64, (ASKED, n)."""
    blocks, text_blocks, width = shape
    texts = units(1, ASKED, text_blocks, width)
    scores = []
    with open(Path(folder, "blocks.f32"), "wb") as stream:
        for at in range(0, images, _PART):
            part = units(2 + at, min(_PART, images - at), blocks, width)
            scores.append(agreement.matrix(part, texts))
            part.tofile(stream)
    exact, values = _mapped(folder, images, shape, "w+")
    return quantise(exact, out=values).step, np.concatenate(scores).T


def _mapped(folder: str, images: int, shape: Shape, mode: Any) -> tuple[Array, NDArray[np.int8]]:
    blocks, _, width = shape
    exact = np.memmap(Path(folder, "blocks.f32"), np.float32, "r", shape=(images, blocks, width))
    return exact, np.memmap(Path(folder, "values.i8"), np.int8, mode, shape=(blocks, images, width))


def _ask_gallery(folder: str, images: int, shape: Shape, step: float, k: int, runs: int) -> dict[str, Any]:
    """Time the first tenth and the whole; `first` is what they found for every query."""
    exact, values = _mapped(folder, images, shape, "r")
    texts = units(1, ASKED, *shape[1:])
    searches = [partial(_first, Quantised(values[:, :size], step, exact[:size]), k) for size in (images // 10, images)]
    first = [tuple(np.stack(part) for part in zip(*map(search, texts))) for search in searches]
    medians = interleaved({i: partial(_ask_next, search, cycle(texts)) for i, search in enumerate(searches)}, runs)
    return {"first": first, "seconds": (medians[0], medians[1]), "peak": peak_bytes()}


def _pairs(images: int, texts: int, shape: Shape) -> tuple[Array, Array, NDArray[np.int64]]:
    """Return random images and texts, and the image of each text, in order."""
    blocks, text_blocks, width = shape
    return units(0, images, blocks, width), units(1, texts, text_blocks, width), np.arange(texts) * images // texts


def _peak_of(way: str, images: int, texts: int, shape: Shape) -> int:
    """Rank once in this process and return its peak in bytes; then the ranks are checked."""
    inputs = _pairs(images, texts, shape)
    found = _RANKINGS[way](*inputs)
    peak = peak_bytes()
    check_ranks(way, *inputs, *found)
    return peak


def _time_ranks(images: int, texts: int, shape: Shape, runs: int) -> dict[str, float]:
    inputs = _pairs(images, texts, shape)
    return interleaved({way: partial(rank, *inputs) for way, rank in _RANKINGS.items()}, runs)


def check_ranks(
    way: str,
    images: Array,
    texts: Array,
    text_to_image: NDArray[np.int64],
    i2t: NDArray[np.int64],
    t2i: NDArray[np.int64],
) -> None:
    """Compare sampled ranks (n,) and (m,) with those of float64.

    Raises:
        RuntimeError: a rank is not between those that ties of float32 allow.
    """
    tie = agreement.TIE * max(1.0, texts.shape[1] / 4)
    for name, ranks in (("image", i2t), ("text", t2i)):
        for query in agreement.sample(len(ranks)).tolist():
            chosen = slice(query, query + 1)
            if name == "image":
                scores, own = agreement.matrix(images[chosen], texts)[0], text_to_image == query
            else:
                scores = agreement.matrix(images, texts[chosen])[:, 0]
                own = np.arange(len(images)) == text_to_image[query]
            best, others = scores[own].max(), scores[~own]
            lowest, highest = int((others > best + tie).sum()), int((others >= best - tie).sum())
            if not lowest <= ranks[query] <= highest:
                raise RuntimeError(f"{way} ranks {name} {query} {ranks[query]}, float64 {lowest} to {highest}")


def _ours(images: Array, texts: Array, text_to_image: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Rank in the whole gallery and in the folds; the whole gallery's ranks are given back."""
    folds = (1, FOLDS) if len(images) % FOLDS == 0 else (1,)
    whole = rank_in_folds(images, texts, text_to_image, folds)[0]
    return whole.i2t, whole.t2i


SORTED = f"{EINSUM}, whole matrix, sorted"
_RANKINGS: dict[str, Callable[..., tuple[NDArray[np.int64], ...]]] = {
    "avse rank_of": _ours,
    SORTED: rivals.sorted_ranks,
}
