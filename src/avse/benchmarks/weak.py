"""How often a question without an answer passes as answered, and what the threshold costs those that have one.

The index holds training pictures alone, and the questions are captions of the test split none of whose content words
stands in any caption of an indexed picture: there is no answer, by the words at least. Titles and pictures are chosen
greedily, the rarest words first, so that most pictures stay. The threshold comes from validation alone. Knows no
printing and no arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avse.calibration import Calibration, Questions, content_words
from avse.data import load_dataset
from avse.evaluate import add_scores, encode_inputs, score
from avse.index import Index
from avse.index.asking import Query
from avse.inputs import can_cache, open_inputs, select
from avse.model import AVSE
from avse.protocols import calibration_of
from avse.texts import text_groups

SIZES = (250, 500, 1000)
WANTED = (0.02, 0.10)
"""The rate that the issue wants of 5 % set on validation."""
_Z = 1.959964
"""Of an interval of 95 %."""


def measure_weak(
    model: AVSE,
    data: str | Path,
    *,
    root: str | Path | None = None,
    wanted: int = 300,
    most: int = 3000,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Measure false accepts and recall on a data set with train, val and test.

    Args:
        model: its own calibration is used; without one, it is learnt from the validation split as training does.
        data: the data set that the model was trained on.
        root: as `load_dataset`.
        wanted: questions without an answer.
        most: training pictures to begin with.
        cache: folder of cached grids.

    Returns:
        Counts, `index` (the flag of the first answers of a real index), `sizes` (a row for every gallery's size),
        `related` (all test texts against all training pictures), `test` (recalls among accepted questions).

    Raises:
        ValueError: so many titles without a shared word leave no picture, or as `calibrate`.
    """
    everything = load_dataset(data, root=root, split="all")
    whole = open_inputs(model, everything, cache=cache if can_cache(model) else None)
    parts = {split: load_dataset(data, root=root, split=split) for split in ("train", "val", "test")}
    tests = select(whole, parts["test"])
    train, test = select(whole, parts["train"].first_by_hash(most)).dataset, tests.dataset
    kept, learnt = model.calibration is not None, model.calibration
    if learnt is None:
        learnt = calibration_of(score([(model, select(whole, parts["val"]), {})]))
    model.calibration = learnt
    first = np.unique(text_groups(test.captions), return_index=True)[1]
    titles = [test.captions[i] for i in first]
    words = [frozenset().union(*map(content_words, train.captions_of(i))) for i in range(train.num_images)]
    chosen, left = unshared([content_words(title) for title in titles], words, wanted)
    if not left:
        raise ValueError(f"{wanted} test texts without a content word of any indexed one leave no picture: ask fewer")
    pictures, _ = encode_inputs(model, select(whole, train.first_captions(1)))
    of_test, texts = encode_inputs(model, tests)
    gallery = add_scores(None, pictures, texts)
    asked = _without_answer(gallery[left][:, chosen])
    own = np.zeros((len(titles), test.num_images), bool)
    own[text_groups(test.captions), test.text_to_image] = True
    table = add_scores(None, of_test, texts).T
    pairs = np.where(own, table, -np.inf).max(1)
    return {
        "measure": "weak",
        "dataset": test.name,
        "false_accepts": learnt.false_accepts,
        "calibration": "the model's own" if kept else "learnt here",
        "learnt_from": learnt.t2i.questions,
        "learnt_at": learnt.t2i.sizes[-1],
        "training_pictures": train.num_images,
        "indexed": len(left),
        "questions": len(chosen),
        "index": _ask([titles[i] for i in chosen], [train.image_ids[i] for i in left], pictures[left], model),
        "sizes": [_row(asked, pairs, size, learnt) for size in [s for s in SIZES if s < len(left)] + [len(left)]],
        "related": _row(_without_answer(gallery), pairs, train.num_images, learnt),
        "test": _accepted(table, own, learnt),
    }


def unshared(
    asked: Sequence[frozenset[str]], indexed: Sequence[frozenset[str]], wanted: int
) -> tuple[list[int], list[int]]:
    """Choose questions, and the entries that share no word with any of them, greedily by what each one costs.

    Args:
        asked: content words of each question; one without any is not chosen.
        indexed: of each entry.
        wanted: how many questions.

    Returns:
        Places of the questions, ascending, and of the entries that stay.

    Raises:
        ValueError: there are fewer questions with content words.
    """
    able = [i for i, words in enumerate(asked) if words]
    if len(able) < wanted:
        raise ValueError(f"{len(able)} test texts have content words; {wanted} are wanted: ask fewer (--questions)")
    shares = np.array([[bool(asked[i] & words) for words in indexed] for i in able])
    stays, chosen = np.ones(len(indexed), bool), np.zeros(len(able), bool)
    for _ in range(wanted):
        cost = np.where(chosen, len(indexed) + 1, (shares & stays).sum(1))
        best = int(cost.argmin())
        chosen[best] = True
        stays &= ~shares[best]
    return [able[i] for i in np.flatnonzero(chosen)], np.flatnonzero(stays).tolist()


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % of a share.

    >>> [round(end, 3) for end in wilson(5, 100)]
    [0.022, 0.112]
    """
    share, weight = hits / count, _Z**2 / count
    middle = (share + weight / 2) / (1 + weight)
    half = _Z * sqrt(share * (1 - share) / count + weight / (4 * count)) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


def _without_answer(scores: NDArray[np.float32]) -> Questions:
    """Take every picture (n, k) for none of a question's own."""
    others = -np.sort(-scores.T, axis=1)
    counts = np.full(len(others), others.shape[1])
    return Questions(np.full(len(others), -np.inf, np.float32), others, counts)


def _ask(titles: list[str], ids: list[str], blocks: NDArray[np.float32], model: AVSE) -> dict[str, Any]:
    """Make an index, ask it, and count the first answers that it does not call weak."""
    with TemporaryDirectory() as folder, Index.create(Path(folder, "weak.avse"), model, store="memory") as index:
        index.add_embeddings(ids, blocks)
        answers = index.search_many([Query(text=title, k=1) for title in titles])
    passed = sum(not hits[0].weak for hits in answers)
    return {"passed": passed, "rate": passed / len(titles), "interval": list(wilson(passed, len(titles)))}


def _row(asked: Questions, pairs: NDArray[np.float32], size: int, learnt: Calibration) -> dict[str, Any]:
    limit, fixed = learnt.threshold(size), learnt.threshold(learnt.t2i.sizes[-1])
    return {
        "gallery": size,
        "threshold": limit,
        "rate": asked.share_passing(limit, size),
        "unadjusted": asked.share_passing(fixed, size),
        "recall": float((pairs >= limit).mean()),
    }


def _accepted(table: NDArray[np.float32], own: NDArray[np.bool_], learnt: Calibration) -> dict[str, Any]:
    """Return R@1 and R@10 of all test texts (k, n) among the test pictures, and of those whose first answer passes."""
    images = table.shape[1]
    best = np.where(own, table, -np.inf).max(1, keepdims=True)
    rank = ((table >= best) & ~own).sum(1)
    passes = table.max(1) >= learnt.threshold(images)
    recalls = {
        name: {f"r{k}": float((rank[which] < k).mean()) if which.any() else None for k in (1, 10)}
        for name, which in (("all", np.ones(len(rank), bool)), ("accepted", passes))
    }
    return {"gallery": images, "texts": len(rank), "passing": float(passes.mean()), **recalls}
