"""An encoder's tokens of a whole batch, computed part by part: with a graph, or cached and gone through a second time.

Cached embeddings (GradCache, Gao et al. 2021): the first pass keeps tokens and no graph, the loss is taken on the whole
batch, the second pass computes each part again with a graph and carries the tokens' gradient back. The memory is then a
part's, whatever the batch. Knows tensors and a function from rows to tokens; no encoder, no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from avse.allocator import release_freed_memory
from avse.trainer.random import random_states, set_random_states

Encode = Callable[[Tensor], Tensor]
"""Rows (b,) int64 of the batch to their tokens (b, ...)."""


class Tokens:
    """The tokens of a batch.

    Args:
        encode: rows to tokens; parts of unequal length along dimension 1 (texts) are padded with zeros.
        parts: the batch's rows, each in one part.
        cached: keep no graph, and compute every part again in `backward`.

    Attributes:
        values: (B, ...), with a graph or, if cached, a leaf that takes a gradient.
    """

    def __init__(self, encode: Encode, parts: Sequence[Tensor], cached: bool) -> None:
        self.encode, self.parts, self.cached = encode, parts, cached
        self.states: list[list[Tensor]] = []
        found = []
        with torch.set_grad_enabled(not cached):
            for rows in parts:
                if cached:
                    self.states.append(random_states())
                found.append(encode(rows))
            self.values = _in_order(found, parts)
        del found
        if cached:
            self.values.requires_grad_()

    def backward(self) -> None:
        """Carry the gradient of cached tokens into the encoder; the random numbers of the first pass come again."""
        if not self.cached or self.values.grad is None:
            return
        gradient = self.values.grad
        self.values = torch.empty(0)  # no longer needed: a batch of tokens is large
        after = random_states()
        for rows, states in zip(self.parts, self.states):
            set_random_states(states)
            tokens = self.encode(rows)
            torch.autograd.backward(tokens, gradient[rows, : tokens.shape[1]])
            del tokens
            if rows is self.parts[0]:
                release_freed_memory()  # else the room of the first part, cut up by then, stays beside the later ones'
        set_random_states(after)


def even_parts(count: int, size: int) -> list[Tensor]:
    """Cut rows 0..count-1 into parts of `size`, in their order."""
    return list(torch.split(torch.arange(count), size))


def parts_by_length(lengths: Tensor, size: int) -> list[Tensor]:
    """Cut rows into parts of `size` of like length, shortest first: little is spent on padding.

    >>> [part.tolist() for part in parts_by_length(torch.tensor([9, 2, 8, 3]), 2)]
    [[1, 3], [2, 0]]
    """
    return list(torch.split(lengths.argsort(stable=True), size))


def _in_order(found: list[Tensor], parts: Sequence[Tensor]) -> Tensor:
    """Join parts in the order of their rows, shorter ones padded with zeros along dimension 1."""
    longest = max(tokens.shape[1] for tokens in found)
    for i, tokens in enumerate(found):
        if tokens.shape[1] < longest:
            found[i] = nn.functional.pad(tokens, (0, 0) * (tokens.ndim - 2) + (0, longest - tokens.shape[1]))
    joined = found[0] if len(found) == 1 else torch.cat(found)
    order = torch.cat(list(parts))
    if torch.equal(order, torch.arange(len(order))):
        return joined
    return joined[order.argsort().to(joined.device)]
