"""GPO, the generalised pooling operator (VSE∞, CVPR 2021): a learnt weighting of each dimension's sorted values.

And the mean, of VSE++. Knows tokens and lengths; no encoder, no views.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class GPO(nn.Module):
    """Pool a set of tokens into one vector.

    Every dimension is sorted over the tokens in descending order and weighted by position. The weights come from a
    bidirectional GRU over sinusoidal position codes and depend on the number of tokens alone.

    Args:
        code_width: width of the position codes.
        hidden: width of each GRU direction; the two are averaged.
        temperature: of the softmax over the positions.
    """

    def __init__(self, code_width: int = 32, hidden: int = 32, temperature: float = 0.1) -> None:
        super().__init__()
        self.code_width, self.temperature = code_width, temperature
        self.gru = nn.GRU(code_width, hidden, batch_first=True, bidirectional=True)
        self.linear = nn.Linear(hidden, 1, bias=False)

    def weights(self, lengths: Tensor) -> Tensor:
        """Return the position weights of sets of the given sizes: (U,) int64 -> (U, max) summing to 1, 0 beyond."""
        longest = int(lengths.max())
        codes = position_codes(longest, self.code_width).to(self.linear.weight)
        packed = pack_padded_sequence(
            codes.expand(len(lengths), -1, -1), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        states, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        forward, backward = states.chunk(2, dim=-1)
        logits = self.linear((forward + backward) / 2).squeeze(-1) / self.temperature
        valid = torch.arange(longest, device=logits.device) < lengths.to(logits.device)[:, None]
        return logits.masked_fill(~valid, -math.inf).softmax(dim=-1)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens (B, K, D) under a mask (B, K), True where a token is valid -> (B, D).

        Raises:
            ValueError: if a set has no valid token.
        """
        batch, count, _ = tokens.shape
        if count == 0 or (mask is not None and not bool(mask.any(dim=1).all())):
            raise ValueError("GPO got a set of zero tokens; every image or text needs at least one")
        columns = tokens.transpose(1, 2)
        if mask is None:
            weights = self.weights(torch.tensor([count]))[0].to(tokens.dtype)
            if tokens.device.type == "cpu" and tokens.dtype == torch.float32:
                return _SortedSum.apply(columns.contiguous(), weights)  # type: ignore[no-untyped-call]
            return columns.contiguous().sort(dim=-1, descending=True).values @ weights
        distinct, which = torch.unique(mask.sum(dim=1), return_inverse=True)
        weights = self.weights(distinct)[which].to(tokens.dtype)
        longest = weights.shape[1]
        low = torch.finfo(tokens.dtype).min
        ordered = columns.masked_fill(~mask[:, None], low).sort(dim=-1, descending=True).values[..., :longest]
        ordered = ordered.masked_fill(weights[:, None] == 0, 0.0)
        return (ordered * weights[:, None]).sum(dim=-1)


class MeanPool(nn.Module):
    """The mean of the valid tokens (VSE++, BMVC 2018)."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens (B, K, D) under a mask (B, K), True where a token is valid -> (B, D)."""
        if mask is None:
            return tokens.mean(dim=1)
        counts = mask.sum(dim=1, keepdim=True)
        if not bool(counts.all()):
            raise ValueError("a set of zero tokens has no mean; every image or text needs at least one")
        return tokens.masked_fill(~mask[..., None], 0.0).sum(dim=1) / counts


POOLINGS: dict[str, type[nn.Module]] = {"gpo": GPO, "mean": MeanPool}


def position_codes(length: int, width: int) -> Tensor:
    """Return 1-D sinusoidal position codes (length, width): sines at even, cosines at odd dimensions."""
    positions = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    codes = torch.zeros(length, width)
    codes[:, 0::2], codes[:, 1::2] = torch.sin(positions * rates), torch.cos(positions * rates)
    return codes


class _SortedSum(torch.autograd.Function):
    """Σ_k w_k · (k-th largest of each row), on the CPU: numpy's vectorised sort is some four times as fast as torch's.

    With gradients, value and position of an entry share one 64-bit key, so that one sort orders both and ties fall to a
    fixed order; without, the values alone are sorted.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor) -> Tensor:
        """Sum rows (..., K) with weights (K,) over their descending order -> (...)."""
        flat = rows.detach().reshape(-1, rows.shape[-1]).numpy()
        needed = any(ctx.needs_input_grad)
        values = np.empty_like(flat)
        places = np.empty(flat.shape if needed else 0, np.int64)

        def sort(part: slice) -> None:
            if needed:
                values[part], places[part] = _ascending(flat[part])
            else:
                values[part] = np.sort(flat[part], axis=-1)

        step = max(1, math.ceil(len(flat) / (4 * torch.get_num_threads())))
        parts = [slice(start, start + step) for start in range(0, len(flat), step)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(sort, parts))
        ordered = torch.from_numpy(values)
        if needed:
            ctx.save_for_backward(ordered, torch.from_numpy(places), weights)
            ctx.shape = rows.shape
        return (ordered @ weights.flip(0)).reshape(rows.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        """Carry the gradient of each sum back to the entries and to the weights."""
        ordered, places, weights = ctx.saved_tensors
        flat = gradients[0].reshape(-1, 1)
        to_rows = torch.empty_like(ordered).scatter_(1, places, flat * weights.flip(0))
        return to_rows.reshape(ctx.shape), (ordered.T @ flat).squeeze(1).flip(0)


def _ascending(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort float32 rows (R, K) -> values ascending and their places, ties by place."""
    bits = rows.view(np.int32)
    keys = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)  # integers in the order of the floats
    keys <<= 32
    keys |= np.arange(rows.shape[1])
    keys.sort(axis=-1)
    high = (keys >> 32).astype(np.int32)
    keys &= 0xFFFFFFFF
    return (high ^ ((high >> 31) & 0x7FFFFFFF)).view(np.float32), keys
