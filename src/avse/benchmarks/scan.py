"""SCAN's text-to-image cross-attention score (Lee et al., ECCV 2018), for the comparison of costs alone.

Regions (N, G, D) and words (M, L, D), unit vectors. For each pair: s_gl = <v_g, t_l>, a leaky ReLU, L2 over the words,
a softmax over the regions with inverse temperature 9 → weights; c_l = Σ_g w_gl v_g; R_l = cos(t_l, c_l); the score is
the mean of R_l or its LogSumExp. The attention depends on the pair: nothing but the regions can be stored.

Three ways of the same numbers: a caption at a time over all images (as published code runs it), batched over both, and
with an image's Gram matrix in place of the attended vectors (|c|² = wᵀ V Vᵀ w), which saves half the multiplications.
Knows no model.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

SLOPE, SMOOTH, LAMBDA, EPS = 0.1, 9.0, 6.0, 1e-8
"""Slope of the leaky ReLU, inverse temperature of the softmax, lambda of the LogSumExp, least length."""
Aggregate = Literal["lse", "mean"]


def scan_by_caption(regions: Tensor, words: Tensor, aggregate: Aggregate = "lse") -> Tensor:
    """Score a caption at a time against all images: regions (N, G, D), words (M, L, D) -> (N, M)."""
    columns = [_batch(regions, words[i].expand(len(regions), -1, -1), aggregate) for i in range(len(words))]
    return torch.stack(columns, dim=1)


def scan_by_pairs(regions: Tensor, words: Tensor, aggregate: Aggregate = "lse") -> Tensor:
    """Score all pairs in one batch: regions (N, G, D), words (M, L, D) -> (N, M); N·M·L·D floats are held."""
    images, texts = len(regions), len(words)
    left, right = regions.repeat_interleave(texts, 0), words.repeat(images, 1, 1)
    return _batch(left, right, aggregate).reshape(images, texts)


def scan_by_gram(regions: Tensor, words: Tensor, aggregate: Aggregate = "lse") -> Tensor:
    """Score without the attended vectors: regions (N, G, D), words (M, L, D) -> (N, M).

    <t, c> = Σ_g w_g s_g is at hand, and |c|² needs the Gram matrix of the image's regions alone.
    """
    images, texts, count = len(regions), len(words), words.shape[1]
    raw = regions @ words.reshape(texts * count, -1).T  # (N, G, M·L)
    weights = _attention(raw.reshape(images, -1, texts, count)).reshape(raw.shape)
    gram = regions @ regions.transpose(1, 2)
    lengths = (weights * (gram @ weights)).sum(1).clamp_min(0).sqrt()
    cosines = (weights * raw).sum(1) / (lengths * words.norm(dim=-1).reshape(1, -1)).clamp_min(EPS)
    return _aggregate(cosines.reshape(images, texts, count), aggregate)


def _batch(regions: Tensor, words: Tensor, aggregate: Aggregate) -> Tensor:
    """Score pairs (B, G, D) and (B, L, D) -> (B,)."""
    weights = _attention(torch.bmm(regions, words.transpose(1, 2)))  # (B, G, L)
    attended = torch.bmm(weights.transpose(1, 2), regions)  # (B, L, D)
    cosines = torch.nn.functional.cosine_similarity(words, attended, dim=-1, eps=EPS)
    return _aggregate(cosines, aggregate)


def _attention(raw: Tensor) -> Tensor:
    """Turn s (B, G, ..., L) into weights over the regions."""
    bent = torch.nn.functional.leaky_relu(raw, SLOPE)
    return (SMOOTH * torch.nn.functional.normalize(bent, dim=-1, eps=EPS)).softmax(dim=1)


def _aggregate(cosines: Tensor, aggregate: Aggregate) -> Tensor:
    """Join the words' cosines (..., L)."""
    if aggregate == "mean":
        return cosines.mean(-1)
    return (LAMBDA * cosines).logsumexp(-1) / LAMBDA
