"""When an answer is none: the score below which a hit is weak, and how far a score can be trusted.

Learnt from the scores of a validation split, numpy alone; knows neither models nor files. Two ideas:

Threshold. A question without an answer still gets a best hit, and the more pictures there are, the better it scores.
The best score of each validation text among pictures that are clearly no answer, because none of their captions shares
a content word with it, is such a hit. (A picture that shares one may well answer, labelled or not: "a red flower" has
many. Identical texts do so anyway. Words on more than a fifth of the pictures tell nothing and do not count.) Over all
subsets of N of these pictures the best score is distributed as order statistics say, without drawing any: a subset
avoids the c highest with chance C(M-c, N) / C(M, N). threshold(N) is the quantile that lets a share `false_accepts`
pass, with split conformal prediction's (n + 1) / n for the finite number of texts. Between the sizes it is linear in
ln N; beyond the validation split's own it goes on with the slope of the last three octaves: a guess that grows with the
distance, on the careful side, for the tails of bounded scores bend the other way.

Confidence. The chance that a first answer of this score is the right one, where every second question has no answer:
a logistic function of score - threshold(N), fitted to the first answers among those pictures with and without a text's
own ones. It never falls with the score. For lower hits it reads as if they came first.

Not done: scores are not normalised by query. On open clip art the mean and spread of a query's scores over the gallery
would let 16 instead of 12 of 100 true pairs pass, but an approximate search never sees them, and one score would mean
two things in one index.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from avse.texts import text_groups

SideName = Literal["t2i", "i2t"]
SIDES: tuple[SideName, SideName] = ("t2i", "i2t")
FALSE_ACCEPTS = 0.05
FEWEST = 20
"""Questions below which nothing is calibrated, distinct texts and pictures alike."""
_MOST = 2000
"""Questions that are looked at; of more, evenly spread ones."""
_SMALLEST = 8
"""Gallery, below which the threshold stays as it is; a question with fewer clear non-answers is left out."""
_OCTAVES = 3
_COMMON = 0.2
"""Share of the pictures above which a word of their captions tells nothing."""
_STOP = frozenset(
    "about after all also and another any are because been being but can could did does for from get had has have her "
    "here him his how into its just like more most not off one only onto other our out over own per she some such than "
    "that the their them then there these they this those through too two under upon very was were what when where "
    "which while who why will with without you your".split()
)
_FORMAT = 1


class CalibrationError(ValueError):
    """A split from which nothing can be learnt, or a kept calibration that cannot be read."""


@dataclass(frozen=True)
class Side:
    """One direction: questions of one kind against a gallery of the other."""

    sizes: tuple[int, ...]
    """Of galleries, ascending, the last one the validation split's."""
    thresholds: tuple[float, ...]
    slope: float
    """Of the logistic function, 0 or more; `intercept` is its logit at the threshold."""
    intercept: float
    questions: int
    """Distinct texts, or pictures, that it was learnt from."""
    recall: float
    """Share of them whose best pair passes the threshold of the largest size."""

    def threshold(self, gallery: int) -> float:
        """Return the score below which a hit among `gallery` entries is weak."""
        logs, size = np.log(self.sizes), np.log(max(1, gallery))
        beyond = size - logs[-1]
        if beyond <= 0:
            return float(np.interp(size, logs, self.thresholds))
        last = slice(-_OCTAVES - 1, None)
        rise = np.polyfit(logs[last], self.thresholds[last], 1)[0] if len(self.sizes) > 1 else 0.0
        return float(self.thresholds[-1] + max(0.0, rise) * beyond)


@dataclass(frozen=True)
class Calibration:
    """Thresholds and confidences of one model, for both directions."""

    t2i: Side
    i2t: Side
    false_accepts: float = FALSE_ACCEPTS
    """Share of questions without an answer whose best hit is not weak."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What it was learnt from."""

    def threshold(self, gallery: int, direction: SideName = "t2i") -> float:
        """Return the score below which a hit among `gallery` entries is weak."""
        return self._side(direction).threshold(gallery)

    def judge(
        self, scores: ArrayLike, gallery: int, direction: SideName = "t2i"
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Judge the scores of hits.

        Args:
            scores: S of the hits, any shape.
            gallery: entries of the index that was asked.
            direction: "t2i" for a sentence in an index of pictures, "i2t" for a picture in one of sentences.

        Returns:
            Confidence in [0, 1] and whether the hit is weak, both of the scores' shape.
        """
        side, values = self._side(direction), np.asarray(scores, np.float64)
        limit = side.threshold(gallery)
        return _sigmoid(side.intercept + side.slope * (values - limit)), values < limit

    def _side(self, direction: SideName) -> Side:
        if direction not in SIDES:
            raise ValueError(f"no direction {direction!r}; there are {', '.join(SIDES)}")
        return self.t2i if direction == "t2i" else self.i2t

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, JSON-ready."""
        sides: dict[str, Any] = {
            name: {key: list(value) if isinstance(value, tuple) else value for key, value in vars(side).items()}
            for name, side in zip(SIDES, (self.t2i, self.i2t))
        }
        return {"format": _FORMAT, "false_accepts": self.false_accepts, "facts": self.facts, **sides}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Calibration:
        """Read what `to_dict` returned.

        Raises:
            CalibrationError: it is of another format, or not whole.
        """
        try:
            if values["format"] != _FORMAT:
                raise CalibrationError(f"calibration of format {values['format']}; this version reads {_FORMAT}")
            sides = [_read_side(values[name]) for name in SIDES]
            return cls(sides[0], sides[1], float(values["false_accepts"]), dict(values["facts"]))
        except CalibrationError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CalibrationError(f"calibration is not whole: {type(error).__name__}: {error}") from error


def _read_side(values: dict[str, Any]) -> Side:
    sizes, limits = [int(size) for size in values["sizes"]], [float(limit) for limit in values["thresholds"]]
    if not 0 < len(sizes) == len(limits) or sizes[0] < 1 or sorted(set(sizes)) != sizes:
        raise CalibrationError(f"calibration has {len(limits)} thresholds for the sizes {sizes}")
    numbers = {name: float(values[name]) for name in ("slope", "intercept", "recall")}
    if not np.isfinite([*limits, *numbers.values()]).all():
        raise CalibrationError("calibration holds NaN or infinity")
    return Side(tuple(sizes), tuple(limits), questions=int(values["questions"]), **numbers)


@dataclass(frozen=True)
class Questions:
    """The scores of one direction's questions: their best pair, and what is clearly no answer."""

    pairs: NDArray[np.float32]
    """(q,) best score among a question's own."""
    others: NDArray[np.float32]
    """(q, g) scores of the clear non-answers, descending; -inf, at the end, for what is left out."""
    counts: NDArray[np.int64]
    """(q,) how many clear non-answers there are."""

    def share_passing(self, limit: float, gallery: int) -> float:
        """Return the share of questions, mean over all galleries of that many others, whose best hit reaches `limit`.

        Exact, from the number c of others that reach it: a gallery avoids them with chance C(M-c, N) / C(M, N). A
        question with fewer others than N has all of them.
        """
        depth = int(min(self.others.shape[1], np.ceil(24 * self.counts.max() / gallery)))  # e^-24 is missed below it
        above = (self.others[:, :depth] >= limit).sum(1)
        size = np.minimum(gallery, self.counts)
        logs = np.concatenate([[0.0], np.log(np.arange(1, int(self.counts.max()) + 1)).cumsum()])
        left = self.counts - above
        chance = np.where(left < size, 0.0, 1.0)
        can = left >= size
        taken = logs[left[can]] - logs[left[can] - size[can]] - logs[self.counts[can]]
        chance[can] = np.exp(taken + logs[self.counts[can] - size[can]])
        return float(1 - chance.mean())

    def limit(self, gallery: int, share: float) -> float:
        """Return the lowest score that at most this share of best hits among `gallery` others reaches."""
        below, above = float(self.others[np.isfinite(self.others)].min()), float(self.others.max())
        above = float(np.nextafter(above, np.inf))
        while (middle := (below + above) / 2) not in (below, above):
            if self.share_passing(middle, gallery) <= share + 1e-9:
                above = middle
            else:
                below = middle
            if above - below < 1e-9 * max(1.0, abs(above)):
                break
        return above


def questions(
    scores: NDArray[np.floating[Any]],
    text_to_image: ArrayLike,
    texts: Sequence[str] | None = None,
    direction: SideName = "t2i",
    *,
    columns: ArrayLike | None = None,
) -> Questions:
    """Sort the scores of a split, question by question, into pairs and clear non-answers.

    Args:
        scores: (n, m) image against caption; with `columns` (n, k) against distinct text.
        text_to_image: (m,) image of each caption.
        texts: the captions. Those that differ in case and spaces alone are one text, of all their images; one that
            shares a content word with a caption of an image is no clear non-answer. None: all non-pairs are.
        direction: which side asks.
        columns: (m,) the column of each caption.

    Raises:
        CalibrationError: scores that are not finite.
        ValueError: shapes that do not fit.
    """
    parts = _matches(scores, text_to_image, texts, columns)
    return _sorted(*(part if direction == "t2i" else part.T for part in parts))


def _matches(
    scores: NDArray[np.floating[Any]],
    text_to_image: ArrayLike,
    texts: Sequence[str] | None,
    columns: ArrayLike | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[Any]]:
    """Return pairs, pairs and unclear ones, and scores of distinct texts against images, (k, n) each."""
    owner, images = np.asarray(text_to_image, np.int64), scores.shape[0]
    if columns is not None:
        groups, kept = np.asarray(columns, np.int64), np.arange(scores.shape[1])
    else:
        groups = np.arange(len(owner)) if texts is None else text_groups(texts)
        kept = np.unique(groups, return_index=True)[1]
    fits = len(groups) == len(owner) == (len(owner) if texts is None else len(texts)) > 0
    wide = scores.shape[1] == (int(groups.max()) + 1 if columns is not None else len(owner)) if fits else False
    if not fits or not wide or int(owner.max()) >= images:
        raise ValueError(f"scores {scores.shape} do not fit {len(owner)} captions in {len(groups)} columns")
    own = np.zeros((len(kept), images), bool)
    own[groups, owner] = True
    unclear = own if texts is None else own | _sharing(groups, owner, texts, own.shape)
    return own, unclear, scores[:, kept].T


def _sorted(own: NDArray[np.bool_], unclear: NDArray[np.bool_], table: NDArray[Any]) -> Questions:
    """Sort scores (q, g) of questions against a gallery into pairs and clear non-answers."""
    usable = np.flatnonzero(own.any(1) & ((~unclear).sum(1) >= _SMALLEST))
    rows = usable[np.unique(np.linspace(0, len(usable) - 1, min(len(usable), _MOST)).round().astype(np.int64))]
    own, unclear, table = own[rows], unclear[rows], table[rows].astype(np.float32)
    if not np.isfinite(table).all():
        raise CalibrationError("scores hold NaN or infinity: nothing can be calibrated on them")
    pairs = np.where(own, table, -np.inf).max(1, initial=-np.inf)
    others = -np.sort(-np.where(unclear, -np.inf, table), axis=1)
    return Questions(pairs, others, (~unclear).sum(1))


def content_words(text: str) -> frozenset[str]:
    """Return the words of three letters or more that are no English stop words, lower-cased, plurals without their s.

    >>> sorted(content_words("The two Dogs, and a glass of 7UP"))
    ['dog', 'glass']
    """
    found = re.findall(r"[^\W\d_]{3,}", text.casefold())
    return frozenset(word[:-1] if re.search(r"\w\w[^\Ws]s$", word) else word for word in found if word not in _STOP)


def _sharing(
    groups: NDArray[np.int64], owner: NDArray[np.int64], texts: Sequence[str], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """Tell of each distinct text and image (k, n) whether a caption of the image shares a telling word with it."""
    pictures_of: dict[str, set[int]] = defaultdict(set)
    words = [content_words(text) for text in texts]
    for image, found in zip(owner.tolist(), words):
        for word in found:
            pictures_of[word].add(image)
    telling = {word: list(of) for word, of in pictures_of.items() if len(of) <= max(1, _COMMON * shape[1])}
    shared = np.zeros(shape, bool)
    for group, found in zip(groups.tolist(), words):
        for word in found & telling.keys():
            shared[group, telling[word]] = True
    return shared


def calibrate(
    scores: NDArray[np.floating[Any]],
    text_to_image: ArrayLike,
    texts: Sequence[str] | None = None,
    *,
    false_accepts: float = FALSE_ACCEPTS,
    facts: dict[str, Any] | None = None,
    columns: ArrayLike | None = None,
) -> Calibration:
    """Learn thresholds and confidences from the scores of a validation split.

    Args:
        scores: as in `questions`, of pictures and captions that the model was not trained on.
        text_to_image: as in `questions`.
        texts: as in `questions`.
        false_accepts: share of questions without an answer whose best hit may pass, in (0, 0.5].
        facts: what the calibration stands with, plain values.
        columns: as in `questions`.

    Raises:
        CalibrationError: too few texts or pictures for that share, or as `questions`.
        ValueError: as `questions`.
    """
    if not 0 < false_accepts <= 0.5:
        raise CalibrationError(f"false_accepts is {false_accepts}; a share above 0 and up to 0.5 is wanted")
    sides, fewest = [], max(FEWEST, int(np.ceil(1 / false_accepts)))
    parts = _matches(scores, text_to_image, texts, columns)
    for turned, what in ((parts, "distinct texts"), (tuple(part.T for part in parts), "pictures")):
        asked = _sorted(*turned)
        if len(asked.pairs) < fewest:
            raise CalibrationError(
                f"{len(asked.pairs)} {what} are too few to calibrate {false_accepts:.2g} false accepts: {fewest} or "
                f"more are wanted, each with {_SMALLEST} clear non-answers"
            )
        sides.append(_learn(asked, false_accepts))
    return Calibration(sides[0], sides[1], false_accepts, facts or {})


def _learn(asked: Questions, share: float) -> Side:
    count, full = len(asked.pairs), int(np.quantile(asked.counts, 0.25))
    careful = max(0.0, 1 - (1 - share) * (count + 1) / count)
    sizes = [full]
    while sizes[-1] // 2 >= _SMALLEST:
        sizes.append(sizes[-1] // 2)
    sizes.reverse()
    limits = [asked.limit(size, careful) for size in sizes]
    slope, intercept = _logistic(*_first_answers(asked), limits[-1])
    return Side(tuple(sizes), tuple(limits), slope, intercept, count, float((asked.pairs >= limits[-1]).mean()))


def _first_answers(asked: Questions) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return score and rightness of each question's first answer, with its own beside the non-answers, and without."""
    best = asked.others[:, 0]
    right = asked.pairs > best
    return np.concatenate([np.maximum(asked.pairs, best), best]).astype(np.float64), np.concatenate(
        [right, right & False]
    )


def _logistic(scores: NDArray[np.float64], right: NDArray[np.bool_], limit: float) -> tuple[float, float]:
    """Fit slope >= 0 and intercept by Newton's steps, with Platt's targets, which keep separable data finite."""
    good, bad = int(right.sum()), int((~right).sum())
    targets = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))
    scale = float(scores.std()) or 1.0
    design = np.stack([np.ones_like(scores), (scores - limit) / scale], axis=1)

    def loss(weights: NDArray[np.float64]) -> float:
        logits = design @ weights
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    weights = np.array([np.log(targets.mean() / (1 - targets.mean())), 0.0])
    level = weights[0]
    for _ in range(100):
        chance = _sigmoid(design @ weights)
        slant = design.T @ (chance - targets)
        curve = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curve, slant)
        while loss(weights - step) > loss(weights) and np.abs(step).max() > 1e-12:
            step = step / 2
        weights = weights - step
        if np.abs(step).max() < 1e-9:
            break
    if weights[1] <= 0:
        return 0.0, float(level)
    return float(weights[1] / scale), float(weights[0])


def _sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)))


class Bin(NamedTuple):
    """Answers of like confidence: `low` to `high`, their mean confidence, the share that is right, their number."""

    low: float
    high: float
    confidence: float
    right: float
    answers: int


def reliability(
    calibration: Calibration,
    scores: NDArray[np.floating[Any]],
    text_to_image: ArrayLike,
    texts: Sequence[str] | None = None,
    *,
    direction: SideName = "t2i",
    bins: int = 10,
    columns: ArrayLike | None = None,
) -> list[Bin]:
    """Hold confidences against the truth on another split: each question asked with its own pictures and without.

    Returns:
        The bins that hold answers, of equal width, lowest first; none where no question has enough clear non-answers.
    """
    asked = questions(scores, text_to_image, texts, direction, columns=columns)
    if not len(asked.pairs):
        return []
    found, right = _first_answers(asked)
    confidence, _ = calibration.judge(found, int(np.quantile(asked.counts, 0.25)), direction)
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    return [
        Bin(i / bins, (i + 1) / bins, float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for i in range(bins)
        if (here := place == i).any()
    ]
