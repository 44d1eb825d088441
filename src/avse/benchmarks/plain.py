"""The plain way to encode and to train, as research scripts do it: what `avse bench train` compares with.

An image is encoded anew for each of its captions, captions stand in the order of the file and are padded to the longest
of their batch, every view is an encoder call, GPO's GRU runs for every set and its sort is strided. The weights are the
model's own, so that all numbers are those of avse. Pictures are decoded ahead, as a DataLoader's workers do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avse.ahead import Ahead
from avse.heads import unit_blocks
from avse.inputs import Inputs
from avse.model import AVSE
from avse.pooling import GPO, position_codes
from avse.precision import exact_float32

_FAR = -10000.0
"""What research code fills padding with."""


@exact_float32()
def plain_pool(pool: GPO, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Pool tokens (B, K, D) under a mask (B, K), by the weights of a GPO -> (B, D)."""
    batch, count, _ = tokens.shape
    valid = torch.ones(batch, count, dtype=torch.bool, device=tokens.device) if mask is None else mask.bool()
    lengths = valid.sum(dim=1)
    codes = position_codes(count, pool.code_width).to(tokens.device).expand(batch, -1, -1)
    packed = pack_padded_sequence(codes, lengths.cpu(), batch_first=True, enforce_sorted=False)
    states, _ = pad_packed_sequence(pool.gru(packed)[0], batch_first=True, total_length=count)
    forward, backward = states.chunk(2, dim=-1)
    beyond = (torch.arange(count, device=tokens.device) >= lengths[:, None])[..., None]
    logits = pool.linear((forward + backward) / 2) / pool.temperature
    weights = logits.masked_fill(beyond, _FAR).softmax(dim=1)
    ordered = tokens.masked_fill(~valid[..., None], _FAR).sort(dim=1, descending=True).values
    return (ordered.masked_fill(beyond, 0.0) * weights).sum(dim=1)


@contextmanager
def pooled_plainly(model: AVSE, plain: bool = True) -> Iterator[None]:
    """Let a model pool by `plain_pool` meanwhile; with `plain` False nothing changes."""
    pools = [head.pool for head in (model.image_head, model.text_head) if isinstance(head.pool, GPO)] if plain else []
    for pool in pools:
        vars(pool)["forward"] = partial(plain_pool, pool)
    try:
        yield
    finally:
        for pool in pools:
            del vars(pool)["forward"]


def view_by_view(model: AVSE, pixels: Tensor, views: Tensor) -> Tensor:
    """Pool views (B, V, K) of pixels (B, 3, H, W), one call of the encoder a view -> (B, V, D)."""
    calls = (model.image_encoder.forward_views(pixels, views[:, v : v + 1]) for v in range(views.shape[1]))
    return torch.stack([model.image_head(tokens[:, 0]) for tokens in calls], dim=1)


def encode_plainly(model: AVSE, inputs: Inputs, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embed pair after pair: images (n, P, C), as for its first caption, and texts (m, Q, C) in file order."""
    owner, captions = inputs.dataset.text_to_image, inputs.dataset.captions
    pairs = [range(len(captions))[start : start + batch_size] for start in range(0, len(captions), batch_size)]
    images, texts = [], []
    model.eval()
    with pooled_plainly(model), torch.inference_mode():
        for rows, pixels in zip(pairs, Ahead(inputs.images.batch(owner[rows]) for rows in pairs)):
            cells = model.sampling(model.image_encoder.grid, len(pixels)).to(model.device)
            views = view_by_view(model, pixels.to(model.device), cells)
            images.append(unit_blocks(model.unit_views(views), model.block_width))
            tokens = model.text_encoder.tokenize([captions[row] for row in rows])
            read = tokens.input_ids.to(model.device), tokens.attention_mask.to(model.device)
            texts.append(model.embed_tokens(*read))
    first = np.unique(owner, return_index=True)[1]
    return torch.cat(images).cpu().numpy()[first], torch.cat(texts).cpu().numpy()
