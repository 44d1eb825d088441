"""An evaluation as one page of HTML: the figures, the ranks, the worst failures, the near-misses explained.

The page stands alone: pictures lie in it, small; nothing is fetched. Bounded: some fifty thumbnails, whatever the
split's size. Queries and their answers are those of the first protocol that is measured, of its folds each in its own
gallery, and duplicate-aware where texts are known: a picture that carries the very sentence is no failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from avse import files, markup
from avse.calibration import reliability
from avse.explain import Explanation, explain, explain_features
from avse.explain.drawing import figure
from avse.images import read_image
from avse.inputs import Inputs
from avse.markup import Html, element
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.protocols import Scored
from avse.ranks import first_k

FAILED_TEXTS, FAILED_IMAGES, NEAR_MISSES = 8, 4, 4
SHOWN, NEAR = 3, 5
"""Answers shown of a failure; the last rank that is a near-miss."""
SIDE, EXPLAINED = 180, 320
_EDGES = (1, 2, 3, 6, 11, 21, 51, 101, 201, 501, 1001, 2001, 5001, 10_001)


def write_report(
    path: str | Path,
    model: AVSE,
    inputs: Inputs,
    scored: Scored,
    reports: Mapping[str, RetrievalReport],
    *,
    force: bool = False,
) -> Path:
    """Write the page of one model on one split, atomically.

    Args:
        path: the HTML file.
        model: what was measured.
        inputs: the split, open for it; rows of features are read from it where the model reads no pictures.
        scored: its scores.
        reports: protocol -> its figures, at least one.
        force: replace a page that is there.

    Raises:
        FileExistsError, IsADirectoryError: as `files.check_target`.
    """
    files.check_target(path, force)
    view = _View(model, inputs, scored, next(iter(reports.values())))
    dataset = scored.dataset
    parts: list[object] = [
        element("h1", f"{dataset.name}, split {dataset.split}"),
        element("p", _measured(model, scored)),
        element("h2", "Recall"),
    ]
    for name, report in reports.items():
        parts += [element("h3", f"Protocol {name}"), report.to_html()]
    parts += [element("h2", "Ranks of the true match"), *_histogram(view)]
    parts += [element("h2", "Worst failures"), element("h3", "Sentences whose picture ranks worst")]
    parts.append(_cards(_failed_texts(view), "every sentence finds its picture first."))
    parts += [element("h3", "Pictures whose sentences rank worst")]
    parts.append(_cards(_failed_images(view), "every picture finds one of its sentences first."))
    parts += [element("h2", "Near-misses, explained"), *_near_misses(view)]
    parts += [element("h2", "Calibration"), *_calibration(view)]
    files.write_text(path, markup.page(f"avse evaluate: {dataset.name}, {dataset.split}", *parts))
    return Path(path)


def _measured(model: AVSE, scored: Scored) -> str:
    dataset, named = scored.dataset, scored.meta.get("model")
    left_out = f", {scored.meta['skipped']} left out" if scored.meta.get("skipped") else ""
    return (
        f"{f'Model {named}' if named else 'A model'}, fingerprint {model.fingerprint[:12]}: P = "
        f"{model.num_image_blocks} image blocks, Q = {model.num_text_blocks}, of width C = {model.block_width}; on "
        f"{dataset.num_images:,} images with {dataset.num_pairs:,} captions{left_out}. Intervals are by bootstrap over "
        "images."
    )


@dataclass(frozen=True)
class _View:
    """What the page looks at: one system, one split, the ranks of one protocol."""

    model: AVSE
    inputs: Inputs
    scored: Scored
    report: RetrievalReport

    @property
    def kind(self) -> str:
        return "duplicate-aware" if self.report.duplicate_aware else "plain"

    @property
    def ranks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ranks of images and of captions, from 0, and the image of each of the former."""
        ranks = (self.report.duplicate_aware or self.report).ranks
        return ranks.i2t, ranks.t2i, ranks.image_of_query

    def fold(self, image: int) -> slice:
        """Return the images among which an image, or its caption, is looked for."""
        starts, size = (
            self.report.ranks.fold_starts,
            self.scored.dataset.num_images // len(self.report.ranks.fold_starts),
        )
        first = int(starts[self.report.ranks.folds_of(np.array([image]))[0]])
        return slice(first, first + size)

    def answers(self, text: int, count: int) -> tuple[list[int], int]:
        """Return the first images that answer a caption, and the best of those that carry it."""
        dataset, column = self.scored.dataset, self.scored.columns[text]
        fold = self.fold(int(dataset.text_to_image[text]))
        scores = self.scored.scores[fold, column]
        owners = dataset.text_to_image[self.scored.columns == column] if self.report.duplicate_aware else None
        true = np.unique(dataset.text_to_image[[text]] if owners is None else owners) - fold.start
        true = true[(true >= 0) & (true < len(scores))]
        last = np.zeros(len(scores), bool)
        last[true] = True  # as the ranks count, a tie is lost
        first = first_k(scores, min(count, len(scores)), last) + fold.start
        return first.tolist(), int(true[scores[true].argmax()]) + fold.start

    def texts_for(self, image: int, count: int) -> list[int]:
        """Return the first captions that answer an image, one for each distinct text."""
        fold, dataset = self.fold(image), self.scored.dataset
        inside = np.flatnonzero((dataset.text_to_image >= fold.start) & (dataset.text_to_image < fold.stop))
        columns, first = np.unique(self.scored.columns[inside], return_index=True)
        best = first_k(self.scored.scores[image, columns], min(count, len(columns)))
        return inside[first[best]].tolist()

    def score(self, image: int, text: int) -> float:
        return float(self.scored.scores[image, self.scored.columns[text]])

    def tile(self, image: int, said: str, right: bool = False) -> Html:
        """Return an image with a line below it; one of features as its name and first caption."""
        dataset = self.scored.dataset
        name = dataset.image_ids[image]
        if dataset.features is not None:
            shown = element("div", f"{name}: {dataset.captions_of(image)[0]}", class_="gone")
        else:
            shown = markup.thumbnail(partial(read_image, dataset.image_paths[image], draft=(SIDE, SIDE)), name, SIDE)
        return element("figure", shown, element("figcaption", said), class_="tile right" if right else "tile")

    def explain(self, image: int, text: str) -> Explanation:
        """Explain an image of the split, from its picture or from its features."""
        if self.scored.dataset.features is None:
            return explain(self.model, self.scored.dataset.image_paths[image], text)
        return explain_features(self.model, self.inputs.images.batch([image])[0], text)


def _histogram(view: _View) -> Iterator[Html]:
    i2t, t2i, _ = view.ranks
    top = int(max(i2t.max(), t2i.max())) + 1
    edges = [edge for edge in _EDGES if edge <= top]
    ends = [*(edge - 1 for edge in edges[1:]), max(top, edges[-1])]
    labels = [str(a) if a == b else f"{a}–{b}" for a, b in zip(edges, ends)]
    shares = {}
    for name, ranks in (("image to text", i2t), ("text to image", t2i)):
        counts = np.bincount(np.searchsorted(edges, ranks + 1, side="right") - 1, minlength=len(edges))
        shares[name] = (100 * counts / len(ranks)).tolist()
    said = f"Percent of {len(i2t):,} images and {len(t2i):,} captions by the rank of their best match, {view.kind}."
    yield element("p", said, class_="note")
    yield markup.bars(labels, shares, f"Rank histogram. {said}", "%")


def _distinct(order: np.ndarray, columns: np.ndarray, count: int) -> list[int]:
    """Return the first captions in an order that are different texts."""
    first = np.unique(columns[order], return_index=True)[1]
    return order[np.sort(first)[:count]].tolist()


def _failed_texts(view: _View) -> Iterator[Html]:
    ranks, dataset = view.ranks[1], view.scored.dataset
    worst = np.argsort(-ranks, kind="stable")
    shown = _distinct(worst[ranks[worst] > 0], view.scored.columns, FAILED_TEXTS)
    for text in shown:
        answers, true = view.answers(text, SHOWN)
        rank, fold = int(ranks[text]) + 1, view.fold(true)
        tiles = [
            view.tile(true, f"its picture: rank {rank:,} of {fold.stop - fold.start:,}, {_s(view, true, text)}", True)
        ]
        tiles += [view.tile(image, f"{place}.  {_s(view, image, text)}") for place, image in enumerate(answers, 1)]
        said = element("p", element("b", dataset.captions[text]))
        yield element("div", said, element("div", *tiles, class_="row"), class_="card")


def _failed_images(view: _View) -> Iterator[Html]:
    ranks, _, images = view.ranks
    worst = np.argsort(-ranks, kind="stable")
    worst = worst[ranks[worst] > 0][:FAILED_IMAGES]
    for query in worst.tolist():
        image, dataset = int(images[query]), view.scored.dataset
        own = [element("li", caption) for caption in dict.fromkeys(dataset.captions_of(image)[:SHOWN])]
        found = [
            element("li", f"{dataset.captions[text]} ({_s(view, image, text)})")
            for text in view.texts_for(image, SHOWN)
        ]
        said = element(
            "div",
            element("p", f"Its own, the best at rank {int(ranks[query]) + 1:,}:"),
            element("ul", *own),
            element("p", "The first answers:"),
            element("ol", *found),
        )
        row = element("div", view.tile(image, dataset.image_ids[image], True), said, class_="row")
        yield element("div", row, class_="card")


def _cards(cards: Iterable[Html], none: str) -> Html:
    shown = list(cards)
    return element("div", *shown, class_="cards") if shown else element("p", f"None: {none}")


def _s(view: _View, image: int, text: int) -> str:
    return f"S\u00a0{view.score(image, text):.3f}"


def _near_misses(view: _View) -> Iterator[Html]:
    ranks = view.ranks[1]
    near = np.array(_distinct(np.flatnonzero((ranks > 0) & (ranks < NEAR)), view.scored.columns, len(ranks)), np.int64)
    if not len(near):
        yield element("p", f"None: no sentence has its picture at rank 2 to {NEAR}.")
        return
    found = [(text, *view.answers(text, 1)) for text in near.tolist()]
    found.sort(key=lambda one: view.score(one[1][0], one[0]) - view.score(one[2], one[0]))
    said = (
        f"Of {len(near):,} sentences whose picture stands at rank 2 to {NEAR} those that missed by the least. Hot is "
        "what supplied the score; words are shaded by their part in it, blue ones lowered it."
    )
    yield element("p", said, class_="note")
    yield _cards((_near_miss(view, text, first, true) for text, (first,), true in found[:NEAR_MISSES]), "")


def _near_miss(view: _View, text: int, first: int, true: int) -> Html:
    rank, said = int(view.ranks[1][text]) + 1, view.scored.dataset.captions[text]
    sides = [
        element("div", element("p", told), figure(view.explain(image, said), EXPLAINED))
        for told, image in ((f"Its picture, rank {rank}", true), ("The first answer", first))
    ]
    return element("div", element("p", element("b", said)), element("div", *sides, class_="row"), class_="card")


def _calibration(view: _View) -> Iterator[Html]:
    calibration = view.model.calibration
    if calibration is None:
        told = "The model has no calibration: its scores say which answer is better, not whether one is good. "
        yield element("p", told, element("code", "avse evaluate MODEL DATA --split val --calibrate"), " learns one.")
        return
    dataset, scored = view.scored.dataset, view.scored
    bins = reliability(calibration, scored.scores, dataset.text_to_image, dataset.captions, columns=scored.columns)
    if not bins:
        yield element("p", "Too few sentences and clear non-answers here to hold the confidences against.")
        return
    limit, share = calibration.threshold(dataset.num_images), 100 * calibration.false_accepts
    learnt = {name: calibration.facts.get(name) for name in ("dataset", "split")}
    same = learnt == {"dataset": dataset.name, "split": dataset.split}
    said = (
        "First answers to sentences, each asked with its own pictures in the gallery and without them: the share that "
        f"is right by the confidence told. Below S {limit:.3f}, for {dataset.num_images:,} entries, an answer is weak "
        f"({share:g} % false accepts wanted). Learnt from {learnt['dataset']}, split {learnt['split']}"
        f"{': this very split, so that the curve flatters' if same else ''}."
    )
    yield element("p", said, class_="note")
    yield markup.curve([(b.confidence, b.right) for b in bins], f"Calibration curve. {said}", "confidence", "right")
    rows = [
        (
            f"{100 * b.low:.0f} – {100 * b.high:.0f} %",
            f"{100 * b.confidence:.1f} %",
            f"{100 * b.right:.1f} %",
            b.answers,
        )
        for b in bins
    ]
    yield markup.table(("confidence", "mean", "right", "answers"), rows)
