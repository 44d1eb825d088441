"""What a user could pick in place of `avse.scoring`, each as its own documentation writes it.

A library that is not installed is told by `missing`, so that a table can name it. Knows arrays alone, no model.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avse.extras import pip_line

Array = NDArray[np.float32]
Search = Callable[[Array], tuple[Array, NDArray[np.int64]]]
"""(R, C) one query -> (k,) scores, best first, and (k,) documents."""
PART = 256
"""Texts of one einsum, as evaluation code shards them."""
TILE = 1024
"""Images of one tile of torch's product with a few queries."""
_OPERATION = 500
"""Points of one operation of Qdrant Edge, whose log takes 32 MiB."""


def missing(module: str) -> str | None:
    """Return what to say of a module that cannot be imported, None of one that can."""
    try:
        importlib.import_module(module)
    except ImportError:
        return f"not installed: {pip_line('bench')}"
    return None


def einsum_max(images: Tensor, texts: Tensor) -> Tensor:
    """Score images (n, P, C) against texts (m, Q, C) -> (n, m) as research code writes it: einsum, max, sum."""
    parts = [torch.einsum("npc,mqc->nmqp", images, part).max(dim=-1)[0].sum(-1) for part in torch.split(texts, PART)]
    return torch.cat(parts, dim=1)


def einsum_amax(images: Tensor, texts: Tensor) -> Tensor:
    """`einsum_max` without the indices that nobody needs."""
    parts = [torch.einsum("npc,mqc->nmqp", images, part).amax(-1).sum(-1) for part in torch.split(texts, PART)]
    return torch.cat(parts, dim=1)


def sentence_transformers(images: Tensor, texts: Tensor) -> Tensor:
    """`einsum_max` by the MaxSim of sentence-transformers, texts as its queries."""
    from sentence_transformers.util import maxsim

    return maxsim(texts, images).T


def maxsim_cpu(images: Tensor, texts: Tensor) -> Tensor:
    """`einsum_max` by maxsim-cpu, which takes one query at a time."""
    import maxsim_cpu as library

    documents = images.numpy()
    return torch.from_numpy(np.stack([library.maxsim_scores(text, documents) for text in texts.numpy()], axis=1))


def numba_scan() -> Callable[[Array, Array], Array]:
    """Return a plain loop, compiled when first called: images (n, P, C), one text (Q, C) -> (n,) scores; one thread."""
    import numba

    def scan(images: Array, text: Array) -> Array:
        scores = np.empty(len(images), np.float32)
        for i in range(len(images)):
            total = np.float32(0)
            for j in range(len(text)):
                best = np.float32(-np.inf)
                for p in range(images.shape[1]):
                    product = np.float32(0)
                    for c in range(images.shape[2]):
                        product += images[i, p, c] * text[j, c]
                    best = max(best, product)
                total += best
            scores[i] = total
        return scores

    return numba.njit(fastmath=True)(scan)


def maxsim_cpu_scan() -> Callable[[Array, Array], Array]:
    """Return maxsim-cpu's function with the arguments of `numba_scan`'s."""
    import maxsim_cpu as library

    return lambda images, text: library.maxsim_scores(text, images)


def scan_search(scan: Callable[[Array, Array], Array], images: Array, k: int) -> Search:
    """Scan (n, P, C) images, then take the best k by numpy."""

    def search(text: Array) -> tuple[Array, NDArray[np.int64]]:
        scores = scan(images, text)
        first = np.argpartition(scores, -k)[-k:]
        first = first[np.argsort(-scores[first])]
        return scores[first], first

    return search


def torch_search(images: Array, k: int) -> Search:
    """Search (n, P, C) images by one product of all blocks, maximum, sum and torch.topk."""
    blocks, number = torch.from_numpy(images).flatten(0, 1), images.shape[1]

    def search(text: Array) -> tuple[Array, NDArray[np.int64]]:
        products = blocks @ torch.from_numpy(text).T
        found = products.view(-1, number, len(text)).amax(1).sum(1).topk(k)
        return found.values.numpy(), found.indices.numpy()

    return search


def torch_tiles(images: Array, texts: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
    """Search (n, P, C) images with (m, Q, C) texts at once, tile by tile -> (m, k) scores and images."""
    columns = torch.from_numpy(texts).flatten(0, 1).T
    parts = []
    for part in torch.split(torch.from_numpy(images), TILE):
        products = (part.flatten(0, 1) @ columns).view(*part.shape[:2], -1).amax(1)
        parts.append(products.view(len(part), *texts.shape[:2]).sum(-1))
    found = torch.cat(parts).topk(k, dim=0)
    return found.values.T.numpy(), found.indices.T.numpy()


def faiss_search(images: Array, k: int) -> Search:
    """Search dense vectors (n, P·C) by faiss's flat inner product: as many bytes, another and simpler score."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(images.shape[1] * images.shape[2])
    index.add(images.reshape(len(images), -1))

    def search(dense: Array) -> tuple[Array, NDArray[np.int64]]:
        scores, found = index.search(dense.reshape(1, -1), k)
        return scores[0], found[0]

    return search


@contextmanager
def qdrant_search(images: Array, k: int) -> Iterator[Search]:
    """Open a shard of Qdrant Edge, exact MaxSim over the (n, P, C) images, in a folder that goes away."""
    import qdrant_edge as engine

    vectors = engine.EdgeVectorParams(
        size=images.shape[2],
        distance=engine.Distance.Dot,
        multivector_config=engine.MultiVectorConfig(engine.MultiVectorComparator.MaxSim),
        datatype=engine.VectorStorageDatatype.Float32,
    )
    with TemporaryDirectory() as folder:
        shard = engine.EdgeShard.create(folder, engine.EdgeConfig(vectors={"blocks": vectors}))
        for at in range(0, len(images), _OPERATION):
            points = [engine.Point(at + i, {"blocks": row}, {}) for i, row in enumerate(images[at : at + _OPERATION])]
            shard.update(engine.UpdateOperation.upsert_points(points))
        shard.flush()

        def search(text: Array) -> tuple[Array, NDArray[np.int64]]:
            asked: Any = text  # arrays are taken as they are, and faster than the lists of the engine's stubs
            query, params = engine.Query.Nearest(asked, using="blocks"), engine.SearchParams(exact=True)
            found = shard.query(engine.QueryRequest(limit=k, query=query, params=params, with_payload=False))
            return np.array([point.score for point in found], np.float32), np.array([point.id for point in found])

        try:
            yield search
        finally:
            shard.close()


def sorted_ranks(images: Array, texts: Array, text_to_image: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Rank as evaluation code does, the whole matrix and each row sorted: ranks of images (n,) and texts (m,)."""
    scores = einsum_max(torch.from_numpy(images), torch.from_numpy(texts)).numpy()
    i2t, t2i = np.empty(len(images), np.int64), np.empty(len(texts), np.int64)
    for image, row in enumerate(scores):
        i2t[image] = np.flatnonzero(text_to_image[np.argsort(row)[::-1]] == image)[0]
    for text, row in enumerate(scores.T):
        t2i[text] = np.flatnonzero(np.argsort(row)[::-1] == text_to_image[text])[0]
    return i2t, t2i
