"""Retrieval metrics: recalls with ties, duplicates, folds and intervals, as a report (method, section 5).

Works on a matrix of scores or on ranks; numpy alone. Ranks are 0-based inside, 1-based in reports; recalls are percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from avse import markup
from avse.intervals import interval, paired_difference, paired_differences, resampled_recalls, resampled_rsums
from avse.ranks import Ranks, count_ranks, hit_rates
from avse.texts import text_groups

__all__ = [
    "Direction",
    "Protocol",
    "Ranks",
    "RetrievalReport",
    "interval",
    "paired_difference",
    "paired_differences",
    "report_from_ranks",
    "resampled_recalls",
    "resampled_rsums",
    "retrieval_metrics",
    "with_intervals",
]


@dataclass(frozen=True)
class Direction:
    """One direction's figures."""

    recalls: dict[int, float]
    """K -> Recall@K in percent, ties counted against the system."""
    optimistic: dict[int, float]
    """The same with ties counted for it."""
    median_rank: float
    mean_rank: float
    intervals: dict[int, tuple[float, float]] = field(default_factory=dict)
    """K -> interval of Recall@K: bootstrap over images. Empty: none was computed."""

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
    interval: tuple[float, float] | None = field(default=None, kw_only=True)
    """Of rSum: bootstrap over images."""

    @property
    def rsum(self) -> float:
        """The sum of all recalls of both directions, in percent."""
        return sum(self.i2t.recalls.values()) + sum(self.t2i.recalls.values())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "rsum": self.rsum,
            "rsum_ci": list(self.interval) if self.interval else None,
            "i2t": _direction_dict(self.i2t),
            "t2i": _direction_dict(self.t2i),
        }


@dataclass(frozen=True)
class RetrievalReport(Protocol):
    """The plain protocol, with the duplicate-aware one beside it."""

    duplicate_aware: Protocol | None = None
    """Images that carry an identical text count as matches; None when the texts are not known."""
    shared_texts: float = 0.0
    """Share of the captions that stand, word for word, on more than one image."""
    ceiling: dict[str, float] = field(default_factory=dict)
    """R@1 in percent of a model that knows every text by heart: only texts of one image alone can hit."""
    further: dict[str, Any] = field(default_factory=dict)
    """Figures under other ground truths, such as ECCV Caption and CxC: name -> side -> measure -> percent."""
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
            **({"folds": len(ranks.fold_starts)} if len(ranks.fold_starts) > 1 else {}),
            **super().to_dict(),
            "duplicate_aware": self.duplicate_aware.to_dict() if self.duplicate_aware else None,
            "shared_texts": self.shared_texts,
            "ceiling_r1": self.ceiling,
            "ties": self.has_ties,
            **self.further,
        }

    def table(self) -> str:
        """Draw the figures as a table for people."""
        ks = list(self.i2t.recalls)
        head = "".join(f"  {side} R@{k:<2}" for side in ("i2t", "t2i") for k in ks)
        lines = [f"{'':17}{head}     rSum   median / mean rank i2t, t2i"]
        lines += _rows("plain", self)
        if self.has_ties:
            values = [d.optimistic[k] for d in (self.i2t, self.t2i) for k in ks]
            lines.append(_row("  ties in favour", values, sum(values)))
        if self.duplicate_aware:
            lines += _rows("duplicate-aware", self.duplicate_aware)
        if self.interval:
            lines.append(f"rSum interval {self.interval[0]:.1f} to {self.interval[1]:.1f} (bootstrap over images)")
        return "\n".join([*lines, *self.notes()])

    def notes(self) -> list[str]:
        """Say in a few lines what else the figures are and what they stand with."""
        lines = []
        for name, sides in self.further.items():
            told = [f"{side} {measure} {value:.1f}" for side in sides for measure, value in sides[side].items()]
            lines.append(f"{name}: {', '.join(told)}")
        if self.ceiling:
            lines.append(
                f"{100 * self.shared_texts:.1f} % of the texts stand on several images; knowing every text "
                f"by heart gives R@1 {self.ceiling['i2t']:.1f} i2t, {self.ceiling['t2i']:.1f} t2i in the plain protocol"
            )
        folds = len(self.ranks.fold_starts)
        told_with = {"images": len(self.ranks.i2t), "pairs": len(self.ranks.t2i), **self.meta}
        if folds > 1:
            lines.append(f"means over {folds} folds of the images in order; each fold is its own gallery")
        return [*lines, ", ".join(f"{key} {value}" for key, value in told_with.items())]

    def to_html(self) -> markup.Html:
        """Draw the figures as a table of HTML, with the intervals below them and the notes."""
        ks = list(self.i2t.recalls)
        head = ["protocol", *(f"{side} R@{k}" for side in ("i2t", "t2i") for k in ks), "rSum"]
        rows: list[list[object]] = [_html_row("plain", self)]
        if self.has_ties:
            values = [d.optimistic[k] for d in (self.i2t, self.t2i) for k in ks]
            rows.append(["ties in favour", *(f"{value:.1f}" for value in [*values, sum(values)]), "", ""])
        if self.duplicate_aware:
            rows.append(_html_row("duplicate-aware", self.duplicate_aware))
        told = [markup.element("p", line, class_="note") for line in self.notes()]
        said = "Recalls in percent, intervals below them; ranks are median / mean."
        return markup.join([markup.table([*head, "i2t rank", "t2i rank"], rows, said), *told])

    def _repr_html_(self) -> str:
        return markup.fragment(self.to_html())


def retrieval_metrics(
    scores: np.ndarray,
    text_to_image: np.ndarray,
    ks: Sequence[int] = (1, 5, 10),
    texts: Sequence[str] | None = None,
    meta: dict[str, Any] | None = None,
    *,
    columns: np.ndarray | None = None,
    folds: int = 1,
) -> RetrievalReport:
    """Measure a matrix of scores in both directions.

    Args:
        scores: (n, m), image i against text j, higher is better; (n, k) with `columns`.
        text_to_image: (m,) the image of each text; any number of texts an image.
        ks: the K of Recall@K.
        texts: m captions; with them the duplicate-aware protocol is measured too.
        meta: what the figure stands with.
        columns: (m,) the column of each caption, where captions that are one text share it; None: one column each.
        folds: cut the images, in order, into so many equal galleries with their captions; recalls and ranks are then
            means over them.

    Raises:
        ValueError: for shapes that do not fit, scores that are not finite, an image index outside 0..n-1, images that
            cannot be cut into `folds`.

    >>> report = retrieval_metrics(np.array([[0.9, 0.1], [0.8, 0.7]]), np.array([0, 1]), ks=(1, 2))
    >>> report.i2t.recalls, report.t2i.recalls, report.rsum
    ({1: 50.0, 2: 100.0}, {1: 100.0, 2: 100.0}, 350.0)
    """
    scores, text_to_image = np.asarray(scores), np.asarray(text_to_image, dtype=np.int64)
    columns = _checked(scores, text_to_image, columns)
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    plain = report_from_ranks(count_ranks(scores, text_to_image, columns, None, folds), ks)
    if texts is None:
        return RetrievalReport(plain.i2t, plain.t2i, plain.ranks, meta=meta or {})
    if len(texts) != len(text_to_image):
        raise ValueError(f"{len(texts)} texts for {len(text_to_image)} captions of the scores")
    groups = text_groups(texts)
    if len(np.unique(columns)) != len(np.unique(np.stack([columns, groups]), axis=1).T):
        raise ValueError("columns: captions that share a column must be one text, but for case and spaces")
    aware = report_from_ranks(count_ranks(scores, text_to_image, columns, groups, folds), ks)
    shared, ceiling = _sharing(groups, text_to_image, plain.ranks)
    return RetrievalReport(plain.i2t, plain.t2i, plain.ranks, aware, shared, ceiling, meta=meta or {})


def _checked(scores: np.ndarray, text_to_image: np.ndarray, columns: np.ndarray | None) -> np.ndarray:
    """Return the column of each caption after everything was found to fit."""
    width = scores.shape[1:] if columns is None else np.shape(columns)
    if scores.ndim != 2 or text_to_image.shape != width:
        of = "" if columns is None else f", columns {width}"
        raise ValueError(
            f"scores have shape {scores.shape}, text_to_image {text_to_image.shape}{of}: expected (n, m), (m,)"
        )
    if not scores.size or not len(text_to_image):
        raise ValueError(f"nothing to measure: scores have shape {scores.shape}")
    if len(wrong := text_to_image[(text_to_image < 0) | (text_to_image >= len(scores))]):
        raise ValueError(f"text_to_image names image {wrong[0]}; scores have rows 0..{len(scores) - 1}")
    if bad := sum(int(np.count_nonzero(~np.isfinite(row))) for row in scores):
        raise ValueError(f"{bad} of {scores.size} scores are not finite")
    chosen = np.arange(scores.shape[1]) if columns is None else np.asarray(columns, np.int64)
    if len(wrong := chosen[(chosen < 0) | (chosen >= scores.shape[1])]):
        raise ValueError(f"columns name column {wrong[0]}; scores have columns 0..{scores.shape[1] - 1}")
    return chosen


def report_from_ranks(ranks: Ranks, ks: Sequence[int] = (1, 5, 10)) -> Protocol:
    """Turn ranks into recalls, median and mean rank, each the mean of its folds."""
    rates, optimistic = hit_rates(ranks, ks), hit_rates(ranks, ks, optimistic=True)
    sides = []
    for side, (values, images) in enumerate(((ranks.i2t, ranks.image_of_query), (ranks.t2i, ranks.image_of_text))):
        folds = ranks.folds_of(images)
        parts = [values[folds == fold] for fold in range(len(ranks.fold_starts))]
        sides.append(
            Direction(
                dict(zip(ks, rates[side].tolist())),
                dict(zip(ks, optimistic[side].tolist())),
                float(np.mean([np.floor(np.median(part)) + 1 for part in parts])),
                float(np.mean([part.mean() + 1 for part in parts])),
            )
        )
    return Protocol(sides[0], sides[1], ranks)


def with_intervals(
    report: RetrievalReport, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> RetrievalReport:
    """Add intervals to rSum and every recall, of both protocols: bootstrap over images, inside their folds."""
    aware = report.duplicate_aware
    found = replace(report, **_intervals(report, resamples, confidence, seed))
    return (
        found
        if aware is None
        else replace(found, duplicate_aware=replace(aware, **_intervals(aware, resamples, confidence, seed)))
    )


def _intervals(part: Protocol, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    ks = list(part.i2t.recalls)
    drawn = resampled_recalls([part.ranks], resamples, seed, ks)
    sides = [
        replace(side, intervals={k: interval(drawn[:, i, j], confidence) for j, k in enumerate(ks)})
        for i, side in enumerate((part.i2t, part.t2i))
    ]
    return {"i2t": sides[0], "t2i": sides[1], "interval": interval(drawn.sum(axis=(1, 2)), confidence)}


def _direction_dict(direction: Direction) -> dict[str, Any]:
    return {
        **{f"r{k}": value for k, value in direction.recalls.items()},
        "median_rank": direction.median_rank,
        "mean_rank": direction.mean_rank,
        "optimistic": {f"r{k}": value for k, value in direction.optimistic.items()},
        **({"ci": {f"r{k}": list(ends) for k, ends in direction.intervals.items()}} if direction.intervals else {}),
    }


def _rows(name: str, part: Protocol) -> list[str]:
    """Draw a protocol's line, with its intervals below it where there are any."""
    sides = (part.i2t, part.t2i)
    spots = ", ".join(f"{d.median_rank:.0f} / {d.mean_rank:.1f}" for d in sides)
    lines = [_row(name, [v for d in sides for v in d.recalls.values()], part.rsum) + f"   {spots}"]
    if part.interval:
        for end, label in enumerate(("  from", "  to")):
            lines.append(_row(label, [ends[end] for d in sides for ends in d.intervals.values()], part.interval[end]))
    return lines


def _row(name: str, values: Sequence[float], rsum: float) -> str:
    return f"{name:17}" + "".join(f"{v:10.1f}" for v in values) + f"{rsum:9.1f}"


def _html_row(name: str, part: Protocol) -> list[object]:
    sides = (part.i2t, part.t2i)
    cells = [(value, d.intervals.get(k)) for d in sides for k, value in d.recalls.items()]
    shown: list[object] = [
        markup.join([f"{value:.1f}", markup.element("span", f"{ends[0]:.1f} – {ends[1]:.1f}") if ends else ""])
        for value, ends in [*cells, (part.rsum, part.interval)]
    ]
    return [name, *shown, *(f"{d.median_rank:.0f} / {d.mean_rank:.1f}" for d in sides)]


def _sharing(groups: np.ndarray, text_to_image: np.ndarray, ranks: Ranks) -> tuple[float, dict[str, float]]:
    """Share of captions standing on several images, and R@1 of a model that cannot tell their copies apart."""
    shares, reachable = [], []
    folds = ranks.folds_of(text_to_image)
    for fold in range(len(ranks.fold_starts)):
        texts, images = groups[folds == fold], text_to_image[folds == fold]
        pairs = np.unique(np.stack([texts, images]), axis=1)
        shared = np.bincount(pairs[0])[texts] > 1
        shares.append(shared.mean())
        reachable.append(len(np.unique(images[~shared])) / len(np.unique(images)))
    share = float(np.mean(shares))
    return share, {"i2t": 100 * float(np.mean(reachable)), "t2i": 100 * (1 - share)}
