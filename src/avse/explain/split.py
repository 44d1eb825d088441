"""Split a score the way it was made: S = Σ_j max_i A_ij over the tokens of a picture and of a sentence.

A view's vector is v_d = Σ_k w_k · (k-th largest x_d of its tokens), x the projected tokens: once the values are sorted,
a weighted sum of known weights. Its block i gets the length 1, so A_ij = Σ_tokens Σ_d w x_d t_jd / |v_i| is a sum over
tokens. A text's vector goes through a LayerNorm, which is linear once its mean and deviation are known. Nothing is
approximated; but what lies before the tokens, an encoder that mixes cells and words, is not split (docs/explain.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avse.explain.explanation import Method
from avse.heads import ImageHead, TextHead, unit_blocks
from avse.model import AVSE
from avse.scoring import block_matches


@dataclass(frozen=True)
class Split:
    """A score in parts, before they are laid on a picture and a sentence.

    Attributes:
        method: how it was split.
        blocks: (Q,) the best image block of each text block.
        scores: (Q,) its A_ij.
        tokens: (Q, prefix + G) what each token of the picture supplied.
        mean: what all of them supplied alike.
        words: (L,) what each token of the sentence supplied.
        bias: what none of them supplied.
    """

    method: Method
    blocks: NDArray[np.int64]
    scores: NDArray[np.float64]
    tokens: NDArray[np.float64]
    mean: float
    words: NDArray[np.float64]
    bias: float


def split_score(model: AVSE, tokens: Tensor, text: str, mask: Tensor | None = None, *, centred: bool = True) -> Split:
    """Split the score of one picture and a sentence exactly, summed in float64.

    A token supplies what it has beyond the mean of its view's cells; what the mean supplies is no token's own.

    Args:
        model: in evaluation mode, with AVSE's own heads.
        tokens: of one picture, as `AVSE.image_tokens` returns them.
        text: one sentence.
        mask: (1, prefix + G) True where a token is valid.
        centred: False leaves the mean with the tokens, for comparison: most of it lies where there is nothing to see.
    """
    supplied, mean, places = _image_parts(model, tokens, mask, centred)
    words, bias = _text_parts(model, text)
    views, vector, width = supplied.sum(dim=1) + mean, words.sum(dim=0) + bias, model.block_width
    images, texts = unit_blocks(views[None], width), unit_blocks(vector[None], width)
    found = block_matches(images, texts)
    blocks, scores = found.blocks[0, 0], found.scores[0, 0]
    (rows, columns), prefix = model.image_encoder.grid, model.image_encoder.num_prefix
    cells = supplied.new_zeros(len(blocks), prefix + rows * columns if tokens.ndim == 4 else tokens.shape[1])
    common, said, unsaid = (supplied.new_zeros(size) for size in (1, len(words), 1))
    for j, i in enumerate(blocks.tolist()):
        view, start = divmod(i * width, views.shape[1])
        of_image, of_text = slice(start, start + width), slice(j * width, (j + 1) * width)
        text_side = texts[0, j] / views[view, of_image].norm()
        cells[j].index_add_(0, places[view], supplied[view, :, of_image] @ text_side)
        common += mean[view, of_image] @ text_side
        image_side = images[0, i] / vector[of_text].norm()
        said += words[:, of_text] @ image_side
        unsaid += bias[of_text] @ image_side
    best, found_scores, of_cells, of_words = (part.cpu().numpy() for part in (blocks, scores, cells, said))
    return Split("exact", best, found_scores, of_cells, float(common), of_words, float(unsaid))


def _image_parts(model: AVSE, tokens: Tensor, mask: Tensor | None, centred: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return what each token of each view supplies (V, K, D), what all do alike (V, D), their places (V, K)."""
    head, prefix = model.image_head, model.image_encoder.num_prefix
    assert isinstance(head, ImageHead)
    places, projected = model.kept_tokens(tokens, mask)[0][0], head.project(tokens[0])
    valid = torch.ones_like(places, dtype=torch.bool) if mask is None else mask[0][places]
    chosen = projected if tokens.ndim == 4 else projected[places]
    weights, values = (
        head.pool.token_weights(chosen, valid).double(),
        chosen.double().masked_fill(~valid[..., None], 0.0),
    )
    cells = (valid & (places >= prefix))[..., None]
    mean = (values * cells).sum(dim=1, keepdim=True) / cells.sum(dim=1, keepdim=True).clamp_min(1) * float(centred)
    return weights * (values - mean), (weights * mean).sum(dim=1), places


def _text_parts(model: AVSE, text: str) -> tuple[Tensor, Tensor]:
    """Return what each token of a sentence supplies to the vector before the blocks, (L, D), and the rest, (D,)."""
    encoder, head = model.text_encoder, model.text_head
    assert isinstance(head, TextHead)
    batch = encoder.tokenize([text])
    ids, mask = batch.input_ids.to(model.device), batch.attention_mask.to(model.device)
    features, norm = head.features(encoder(ids, mask), mask), head.norm
    supplied = (head.pool.token_weights(features, mask.bool()).double() * features.double())[0]
    deviation = (supplied.sum(dim=0).var(correction=0) + norm.eps).sqrt()
    centred = supplied - supplied.mean(dim=1, keepdim=True)
    return norm.weight.double() * centred / deviation, norm.bias.double()
