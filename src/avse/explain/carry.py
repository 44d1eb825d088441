"""Lay the parts of a score on a picture's cells and a sentence's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from avse.explain.explanation import Explanation, Match, Word
from avse.explain.gradient import split_pixels, split_tokens
from avse.explain.split import Split, split_score
from avse.images import ImageSource, read_image, seen_frame
from avse.model import AVSE

WHOLE = (0.0, 0.0, 1.0, 1.0)


def explain(model: AVSE, image: ImageSource, text: str) -> Explanation:
    """Say why a picture and a sentence score as they do.

    Args:
        model: in either mode; explained is what it does in evaluation.
        image: a path, the bytes of a file, a Pillow image or an array, as `AVSE.encode_images` takes them.
        text: one sentence; one cut at the encoder's limit warns.

    Raises:
        ValueError: the sentence is empty.
        ImageError: the picture cannot be read.
        EncoderError: the model reads regions and no pictures (`explain_features` takes them).
    """
    _check_text(model, text)
    encoder = model.image_encoder
    if model.pixels is None:
        encoder.load_pixels(image)  # says that it reads none
    picture = read_image(image, draft=None if isinstance(image, Image.Image) else encoder.pixels.draft)
    pixels = torch.from_numpy(encoder.load_pixels(picture))[None].to(model.device)
    with _evaluating(model):
        own = model.config.heads == "own"
        split = split_pixels(model, pixels, text) if own else split_score(model, model.image_tokens(pixels), text)
    return _laid_out(model, split, text, encoder.grid, seen_frame(picture.size, encoder.pixels), None, image)


def explain_features(
    model: AVSE,
    grid: Tensor | ArrayLike,
    text: str,
    mask: Tensor | ArrayLike | None = None,
    boxes: ArrayLike | None = None,
    *,
    image: ImageSource | None = None,
    frame: tuple[float, float, float, float] = WHOLE,
) -> Explanation:
    """Say why features, such as a cached grid or regions, and a sentence score as they do.

    Args:
        model: one whose views are not sampled at the input.
        grid: (prefix + G, W) features of one picture, prefix tokens first.
        text: one sentence; one cut at the encoder's limit warns.
        mask: (prefix + G,) True where a feature is valid.
        boxes: (G, 4) of regions, x0, y0, x1, y1 as shares of the picture's sides.
        image: the picture, for drawing alone.
        frame: what the features show of it, as shares.

    Raises:
        ValueError: shapes that do not fit the model, another number of boxes than of features, a mask that hides all
            of them, an empty sentence, or features of a pair that pools its CLS token (CLIP).
    """
    _check_text(model, text)
    features = torch.as_tensor(grid)[None].to(model.device, next(model.image_head.parameters()).dtype)
    valid = None if mask is None else torch.as_tensor(mask, dtype=torch.bool)[None].to(model.device)
    if valid is not None and not valid.any():
        raise ValueError(f"the mask hides all {valid.shape[1]} features: at least one must be valid")
    cells, (rows, columns) = features.shape[1] - model.image_encoder.num_prefix, model.image_encoder.grid
    placed = None if boxes is None else np.asarray(boxes, np.float32)
    if placed is not None and placed.shape != (cells, 4):
        raise ValueError(f"boxes have shape {placed.shape}; expected ({cells}, 4): x0, y0, x1, y1 of each feature")
    with _evaluating(model):
        tokens, own = model.image_tokens(features), model.config.heads == "own"
        split = split_tokens(model, tokens, text, valid) if own else split_score(model, tokens, text, valid)
    shape = (rows, columns) if placed is None and cells == rows * columns else (1, cells)
    return _laid_out(model, split, text, shape, frame, placed, image)


def _check_text(model: AVSE, text: str) -> None:
    if not text.strip():
        raise ValueError("the sentence is empty: give the words that the picture is asked about")
    model.text_encoder.warn_of_cuts([text], model.text_encoder.tokenize([text]).truncated, stacklevel=4)


def _laid_out(
    model: AVSE,
    split: Split,
    text: str,
    grid: tuple[int, int],
    frame: tuple[float, float, float, float],
    boxes: NDArray[np.float32] | None,
    image: ImageSource | None,
) -> Explanation:
    score, prefix = float(split.scores.sum()), model.image_encoder.num_prefix
    per_score = 1 / score if score else 0.0
    views = split.blocks * model.block_width // model.config.embed_dim
    matches = [
        Match(j, int(i), int(view), float(found), float(found) * per_score)
        for j, (i, view, found) in enumerate(zip(split.blocks, views, split.scores))
    ]
    words, spans = list[Word](), model.text_encoder.word_spans(text)
    for span, pieces in groupby(range(len(spans)), key=spans.__getitem__):
        if span is not None and span[0] < span[1]:
            said = float(split.words[list(pieces)].sum())
            words.append(Word(text[slice(*span)], *span, said, said * per_score))
    return Explanation(
        text=text,
        score=score,
        matches=tuple(matches),
        grid=grid,
        heats=split.tokens[:, prefix:].reshape(-1, *grid).astype(np.float32),
        beyond=split.mean + float(split.tokens[:, :prefix].sum()),
        words=tuple(words),
        beside=split.bias + float(split.words.sum()) - sum(word.score for word in words),
        method=split.method,
        frame=frame,
        boxes=boxes,
        image=image,
    )


@contextmanager
def _evaluating(model: AVSE) -> Iterator[None]:
    """Evaluation mode without gradients, and the former mode afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if training:
            model.train()
