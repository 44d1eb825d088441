"""Gradient x input, for pairs such as CLIP whose own pooling has no linear split: attention, or one token alone.

The inputs are the tokens at the first block, patches with their places, and words without theirs. Parts need not add up
to the score. Before a norm the product would be 0 for every token, as a norm ignores how large its input is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avse.explain.split import Split
from avse.heads import unit_blocks
from avse.model import AVSE
from avse.scoring import block_matches


def split_pixels(model: AVSE, pixels: Tensor, text: str) -> Split:
    """Split the score of pixels (1, 3, H, W) and a sentence by the encoders' first tokens."""
    tower = model.image_encoder.model
    first = getattr(tower, "pre_layrnorm", tower.embeddings)
    with torch.inference_mode(False), torch.enable_grad(), _leaf(first) as leaves:
        images = model.embed_pixels(pixels)
        return _split(model, images, leaves[0], text)


def split_tokens(model: AVSE, tokens: Tensor, text: str, mask: Tensor | None = None) -> Split:
    """Split the score of one picture's tokens (1, prefix + G, W) behind its encoder and a sentence.

    Raises:
        ValueError: a pair that pools CLS alone, such as CLIP, or a mask that hides any token.
    """
    if getattr(model.image_head, "project", None) is not None:
        raise ValueError(
            "features of a pair such as CLIP cannot be explained: behind its encoder the CLS token alone makes the "
            "score, and no cell has a part in it; explain() takes the picture"
        )
    with torch.inference_mode(False), torch.enable_grad():
        leaf = tokens.detach().clone().requires_grad_()
        views = model.unit_views(model.pool_views(leaf, mask))
        return _split(model, unit_blocks(views, model.block_width), leaf, text)


def _split(model: AVSE, images: Tensor, leaf: Tensor, text: str) -> Split:
    batch = model.text_encoder.tokenize([text])
    with _leaf(model.text_encoder.model.get_input_embeddings()) as leaves:
        texts = model.embed_tokens(batch.input_ids.to(model.device), batch.attention_mask.to(model.device))
    found = block_matches(images, texts)
    scores = found.scores[0, 0]
    (slope,) = torch.autograd.grad(scores.sum(), leaves[0], retain_graph=True)
    words = (slope * leaves[0]).sum(dim=-1)[0]
    parts = [(torch.autograd.grad(score, leaf, retain_graph=True)[0] * leaf).sum(dim=-1)[0] for score in scores]
    each, cells, said = (part.detach().double().cpu().numpy() for part in (scores, torch.stack(parts), words))
    return Split("gradient", found.blocks[0, 0].cpu().numpy(), each, cells, 0.0, said, 0.0)


@contextmanager
def _leaf(module: nn.Module) -> Iterator[list[Tensor]]:
    """Let a gradient begin at what a module returns in this thread; the list holds it once the module has run."""
    caught, thread = list[Tensor](), threading.get_ident()

    def cut(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if threading.get_ident() != thread:
            return output
        caught.append(output.detach().requires_grad_())
        return caught[-1]

    handle = module.register_forward_hook(cut)
    try:
        yield caught
    finally:
        handle.remove()
