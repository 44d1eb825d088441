"""Indexes of random unit blocks without any model, and S by loops in float64."""

from pathlib import Path

import numpy as np

from avse.index import Index

P, Q, C = 4, 2, 8


class Shapes:
    """What an index wants to know of a model that is never asked to encode."""

    num_image_blocks, num_text_blocks, block_width = P, Q, C
    fingerprint = "shapes-0"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder


def unit(*shape: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal(shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def naive_score(image: np.ndarray, text: np.ndarray) -> float:
    """S(I, T) = Σ_j max_i <v_i, t_j>."""
    return sum(max(sum(float(a) * float(b) for a, b in zip(v, t)) for v in image) for t in text)


def payload_of(row: int) -> dict:
    return {
        "folder": f"f{row % 3}",
        "year": 2015 + row % 7,
        "share": row if row % 2 else row / 8,
        "tags": ["a", f"ü {row}"],
        "mixed": row if row % 2 else str(row),
        "ID": row,
        **({"late": row % 2 == 0} if row > 20 else {}),
    }


def make_index(path, count=60, side="images", folder=None, **arguments):
    """Write ``count`` entries, take one out and replace one; return ids, blocks and payloads of what is there."""
    blocks = unit(count, P if side == "images" else Q, C)
    ids = [f"{row % 4}/p {row} ü.png" for row in range(count)]
    with Index.create(path, Shapes(folder), side=side, **arguments) as index:
        index.add_embeddings(ids, blocks[::-1].copy(), [payload_of(0)] * count)
        index.add_embeddings(ids, blocks, [payload_of(row) for row in range(count)])
        index.delete(ids[:1])
    return ids[1:], blocks[1:], [payload_of(row) for row in range(1, count)]
