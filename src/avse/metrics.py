"""Retrieval metrics: recall, ranks with ties, duplicates, intervals, paired differences (method, section 5).

Works on a matrix of scores or on ranks; numpy alone. Ranks are 0-based inside, 1-based in reports; recalls are percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from avse.texts import text_groups

CHUNK_FLOATS = 1 << 24


@dataclass(frozen=True)
class Ranks:
    """0-based ranks of the best match of every query; images without captions are no i2t queries."""

    i2t: np.ndarray
    """(q,) int64, ties counted against the system."""
    t2i: np.ndarray
    """(m,) int64."""
    i2t_optimistic: np.ndarray
    """(q,) int64, ties counted for the system."""
    t2i_optimistic: np.ndarray
    image_of_query: np.ndarray
    """(q,) int64, the image of each i2t query."""
    image_of_text: np.ndarray
    """(m,) int64, text_to_image."""


@dataclass(frozen=True)
class Direction:
    """One direction's figures."""

    recalls: dict[int, float]
    """K -> Recall@K in percent, ties counted against the system."""
    optimistic: dict[int, float]
    """The same with ties counted for it."""
    median_rank: float
    mean_rank: float

    @property
    def r1(self) -> float:
        """Recall@1 in percent."""
        return self.recalls[1]

    @property
    def r5(self) -> float:
        """Recall@5 in percent."""
        return self.recalls[5]

    @property
    def r10(self) -> float:
        """Recall@10 in percent."""
        return self.recalls[10]


@dataclass(frozen=True)
class Protocol:
    """Both directions under one notion of a match."""

    i2t: Direction
    t2i: Direction
    ranks: Ranks = field(repr=False)

    @property
    def rsum(self) -> float:
        """The sum of all recalls of both directions, in percent."""
        return sum(self.i2t.recalls.values()) + sum(self.t2i.recalls.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"rsum": self.rsum, "i2t": _direction_dict(self.i2t), "t2i": _direction_dict(self.t2i)}


@dataclass(frozen=True)
class RetrievalReport(Protocol):
    """The plain protocol, with the duplicate-aware one beside it."""

    duplicate_aware: Protocol | None = None
    """Images that carry an identical text count as matches; None when the texts are not known."""
    shared_texts: float = 0.0
    """Share of the captions that stand, word for word, on more than one image."""
    ceiling: dict[str, float] = field(default_factory=dict)
    """R@1 in percent of a model that knows every text by heart: only texts of one image alone can hit."""
    interval: tuple[float, float] | None = None
    """Of the plain rSum: bootstrap over images."""
    meta: dict[str, Any] = field(default_factory=dict)
    """Split, resolution, precision, seed, and what else the figure stands with."""

    @property
    def has_ties(self) -> bool:
        """Whether any recall depends on how ties are broken."""
        return any(d.recalls != d.optimistic for d in (self.i2t, self.t2i))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, JSON-ready."""
        ranks = self.ranks
        return {
            **self.meta,
            "images": len(ranks.i2t),
            "pairs": len(ranks.t2i),
            **super().to_dict(),
            "rsum_ci": list(self.interval) if self.interval else None,
            "duplicate_aware": self.duplicate_aware.to_dict() if self.duplicate_aware else None,
            "shared_texts": self.shared_texts,
            "ceiling_r1": self.ceiling,
            "ties": self.has_ties,
        }

    def table(self) -> str:
        """Draw the figures as a table for people."""
        ks = list(self.i2t.recalls)
        head = "".join(f"  {side} R@{k:<2}" for side in ("i2t", "t2i") for k in ks)
        lines = [f"{'':17}{head}     rSum   median / mean rank i2t, t2i"]
        rows: list[tuple[str, Protocol, bool]] = [("plain", self, False)]
        if self.has_ties:
            rows.append(("  ties in favour", self, True))
        if self.duplicate_aware:
            rows.append(("duplicate-aware", self.duplicate_aware, False))
        for name, part, optimistic in rows:
            sides = (part.i2t, part.t2i)
            values = [(d.optimistic if optimistic else d.recalls)[k] for d in sides for k in ks]
            spots = ", ".join(f"{d.median_rank:.0f} / {d.mean_rank:.1f}" for d in sides)
            lines.append(f"{name:17}" + "".join(f"{v:9.1f}" for v in values) + f"{sum(values):9.1f}   {spots}")
        if self.interval:
            lines.append(f"rSum interval {self.interval[0]:.1f} to {self.interval[1]:.1f} (bootstrap over images)")
        if self.ceiling:
            lines.append(
                f"{100 * self.shared_texts:.1f} % of the texts stand on several images; knowing every text "
                f"by heart gives R@1 {self.ceiling['i2t']:.1f} i2t, {self.ceiling['t2i']:.1f} t2i in the plain protocol"
            )
        told = {"images": len(self.ranks.i2t), "pairs": len(self.ranks.t2i), **self.meta}
        return "\n".join([*lines, ", ".join(f"{key} {value}" for key, value in told.items())])


def retrieval_metrics(
    scores: np.ndarray,
    text_to_image: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    texts: Sequence[str] | None = None,
    meta: dict[str, Any] | None = None,
) -> RetrievalReport:
    """Measure a matrix of scores in both directions.

    Args:
        scores: (n, m), image i against text j, higher is better.
        text_to_image: (m,) the image of each text; any number of texts an image.
        ks: the K of Recall@K.
        texts: m captions; with them the duplicate-aware protocol is measured too.
        meta: what the figure stands with.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, an image index outside 0..n-1.

    >>> report = retrieval_metrics(np.array([[0.9, 0.1], [0.8, 0.7]]), np.array([0, 1]), ks=(1, 2))
    >>> report.i2t.recalls, report.t2i.recalls, report.rsum
    ({1: 50.0, 2: 100.0}, {1: 100.0, 2: 100.0}, 350.0)
    """
    scores = np.asarray(scores)
    text_to_image = np.asarray(text_to_image, dtype=np.int64)
    if scores.ndim != 2 or text_to_image.shape != scores.shape[1:]:
        raise ValueError(
            f"scores have shape {scores.shape}, text_to_image {text_to_image.shape}: expected (n, m), (m,)"
        )
    if not scores.size:
        raise ValueError(f"nothing to measure: scores have shape {scores.shape}")
    if text_to_image.min() < 0 or text_to_image.max() >= len(scores):
        raise ValueError(f"text_to_image names image {text_to_image.max()}; scores have rows 0..{len(scores) - 1}")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {scores.size} scores are not finite")
    own = np.arange(len(scores))
    plain = report_from_ranks(_ranks(scores, text_to_image, [{i} for i in own.tolist()], text_to_image), ks)
    if texts is None:
        return RetrievalReport(plain.i2t, plain.t2i, plain.ranks, meta=meta or {})
    if len(texts) != len(text_to_image):
        raise ValueError(f"{len(texts)} texts for {len(text_to_image)} columns of scores")
    groups = text_groups(texts)
    owned: list[set[int]] = [set() for _ in own]
    for group, image in zip(groups.tolist(), text_to_image.tolist()):
        owned[image].add(group)
    aware = report_from_ranks(_ranks(scores, text_to_image, owned, groups), ks)
    shared, ceiling = _sharing(groups, text_to_image)
    return RetrievalReport(plain.i2t, plain.t2i, plain.ranks, aware, shared, ceiling, meta=meta or {})


def report_from_ranks(ranks: Ranks, ks: Sequence[int] = (1, 5, 10)) -> Protocol:
    """Turn ranks into recalls, median and mean rank."""
    return Protocol(
        _direction(ranks.i2t, ranks.i2t_optimistic, ks), _direction(ranks.t2i, ranks.t2i_optimistic, ks), ranks
    )


def _direction(ranks: np.ndarray, optimistic: np.ndarray, ks: Sequence[int]) -> Direction:
    return Direction(
        {k: float(100 * (ranks < k).mean()) for k in ks},
        {k: float(100 * (optimistic < k).mean()) for k in ks},
        float(np.floor(np.median(ranks)) + 1),
        float(ranks.mean() + 1),
    )


def _direction_dict(direction: Direction) -> dict[str, Any]:
    return {
        **{f"r{k}": value for k, value in direction.recalls.items()},
        "median_rank": direction.median_rank,
        "mean_rank": direction.mean_rank,
        "optimistic": {f"r{k}": value for k, value in direction.optimistic.items()},
    }


def _ranks(scores: np.ndarray, text_to_image: np.ndarray, owned: list[set[int]], labels: np.ndarray) -> Ranks:
    """Rank under the rule that text j matches image i when labels[j] is in owned[i]."""
    n, m = scores.shape
    member = np.zeros((n, int(labels.max()) + 1), dtype=bool)
    for image, values in enumerate(owned):
        member[image, [v for v in values if v < member.shape[1]]] = True
    queries = np.unique(text_to_image)
    i2t, i2t_optimistic = np.empty((2, len(queries)), dtype=np.int64)
    step = max(1, CHUNK_FLOATS // m)
    for start in range(0, len(queries), step):
        rows = queries[start : start + step]
        i2t[start : start + step], i2t_optimistic[start : start + step] = _count(scores[rows], member[rows][:, labels])
    t2i, t2i_optimistic = np.empty((2, m), dtype=np.int64)
    step = max(1, CHUNK_FLOATS // n)
    for start in range(0, m, step):
        columns = slice(start, start + step)
        t2i[columns], t2i_optimistic[columns] = _count(scores[:, columns].T, member[:, labels[columns]].T)
    return Ranks(i2t, t2i, i2t_optimistic, t2i_optimistic, queries, text_to_image)


def _count(scores: np.ndarray, matches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count, a row each, the non-matches at or above (pessimistic) and above (optimistic) the best match."""
    best = np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)
    return (~matches & (scores >= best)).sum(axis=1), (~matches & (scores > best)).sum(axis=1)


def _sharing(groups: np.ndarray, text_to_image: np.ndarray) -> tuple[float, dict[str, float]]:
    """Share of captions standing on several images, and R@1 of a model that cannot tell their copies apart."""
    pairs = np.unique(np.stack([groups, text_to_image]), axis=1)
    shared = np.bincount(pairs[0])[groups] > 1
    reachable = len(np.unique(text_to_image[~shared])) / len(np.unique(text_to_image))
    return float(shared.mean()), {"i2t": 100 * reachable, "t2i": float(100 * (1 - shared.mean()))}


def resampled_rsums(
    seeds: Sequence[Ranks], resamples: int = 1000, seed: int = 0, ks: Sequence[int] = (1, 5, 10)
) -> np.ndarray:
    """Bootstrap the mean rSum over training seeds: images with their captions are drawn again, the gallery is fixed.

    With several seeds the seeds are drawn again too, so that an interval holds the spread of training.

    Args:
        seeds: the ranks of one system on one test set, one entry a training seed.
        resamples: R.
        seed: of the draws; systems resampled with one seed are paired.
        ks: the K of the recalls that are summed.

    Returns:
        (R,) rSums in percent.
    """
    first = seeds[0]
    images = int(first.image_of_text.max()) + 1
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(first.i2t), np.full(len(first.i2t), 1 / len(first.i2t)), size=resamples)
    weights = np.zeros((resamples, images))
    weights[:, first.image_of_query] = drawn
    texts_drawn = weights @ np.bincount(first.image_of_text, minlength=images)
    sums = np.zeros((len(seeds), resamples))
    for row, ranks in zip(sums, seeds):
        for k in ks:
            row += 100 * (drawn @ (ranks.i2t < k)) / drawn.sum(axis=1)
            hits = np.bincount(ranks.image_of_text, weights=ranks.t2i < k, minlength=images)
            row += 100 * (weights @ hits) / texts_drawn
    picked = random.multinomial(len(seeds), np.full(len(seeds), 1 / len(seeds)), size=resamples).T / len(seeds)
    return (sums * picked).sum(axis=0)


def interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Return the central interval of bootstrap values.

    >>> [round(end) for end in interval(np.arange(101.0), 0.9)]
    [5, 95]
    """
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def paired_difference(
    first: Sequence[Ranks], second: Sequence[Ranks], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Compare two systems on one test set: difference of mean rSums, its interval and a two-sided bootstrap p.

    Args:
        first: ranks of the one system, one entry a training seed.
        second: ranks of the other, with as many seeds, on the same pairs.
        resamples: of the bootstrap.
        confidence: of the interval.
        seed: of the draws.

    Returns:
        {"mean", "ci", "p"}; p is at least 2 / (resamples + 1).

    Raises:
        ValueError: when the two were not measured on the same pairs or have other numbers of seeds.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} seeds of one system against {len(second)} of the other: pair them")
    for ranks in (*first, *second):
        if not np.array_equal(ranks.image_of_text, first[0].image_of_text):
            raise ValueError("the two systems were measured on different pairs; evaluate both on one test set")
    mean = float(
        np.mean([report_from_ranks(r).rsum for r in first]) - np.mean([report_from_ranks(r).rsum for r in second])
    )
    differences = resampled_rsums(first, resamples, seed) - resampled_rsums(second, resamples, seed)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    return {
        "mean": mean,
        "ci": list(interval(differences, confidence)),
        "p": float(min(1.0, 2 * (tail + 1) / (resamples + 1))),
    }
