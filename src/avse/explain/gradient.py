"""Gradient x input, for pairs such as CLIP whose own pooling has no linear split: attention, or one token alone.

The inputs are the tokens before the blocks, patches with their places and words. Parts need not add up to the score.
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
    with torch.inference_mode(False), torch.enable_grad(), _leaf(model.image_encoder.model.embeddings) as leaves:
        images = model.embed_pixels(pixels)
        return _split(model, images, leaves[0], text)


def split_tokens(model: AVSE, tokens: Tensor, text: str) -> Split:
    """Split the score of one picture's tokens (1, prefix + G, W) behind its encoder and a sentence."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = tokens.detach().clone().requires_grad_()
        views = model.unit_views(model.pool_views(leaf))
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
