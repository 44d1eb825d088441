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

from avse.precision import exact_float32


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

    @exact_float32()
    def weights(self, lengths: Tensor) -> Tensor:
        """Return the position weights of sets of the given sizes: (U,) int64 -> (U, max) summing to 1, 0 beyond.

        Autocast or not, they are computed in the parameters' own precision: the temperature would blow errors up.
        """
        longest = int(lengths.max())
        with torch.autocast(self.linear.weight.device.type, enabled=False):
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

        A valid value that is not finite makes the result of its set and dimension not finite. 16-bit values are summed
        in float32 and the sum is rounded.

        Raises:
            ValueError: if a set has no valid token.
        """
        batch, count, _ = tokens.shape
        if count == 0 or (mask is not None and not bool(mask.any(dim=1).all())):
            raise ValueError("GPO got a set of zero tokens; every image or text needs at least one")
        wide = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            if mask is None:
                weights = self.weights(torch.tensor([count]))[0].to(wide)
                return (_ascending(tokens.transpose(1, 2)).to(wide) @ weights.flip(0)).to(tokens.dtype)
            lengths = mask.sum(dim=1)
            distinct, which = torch.unique(lengths, return_inverse=True)
            weights = self.weights(distinct)[which].to(wide)
            columns = tokens.transpose(1, 2).masked_fill(~mask[:, None], -math.inf)
            columns = columns.masked_fill(
                columns.isnan(), math.nan
            )  # of either sign: it stands first, not past the end
            ordered = _ascending(columns).flip(-1)[..., : weights.shape[1]].to(wide)
            beyond = torch.arange(weights.shape[1], device=mask.device) >= lengths[:, None]
            ordered = ordered.masked_fill(beyond[:, None], 0.0)
            return (ordered * weights[:, None]).sum(dim=-1).to(tokens.dtype)

    def token_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what every value is weighted by, (B, K, D): times the tokens and summed over K it is `forward`.

        Equal values take their places in the order of the tokens; a token that is not valid has weight 0.
        """
        valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask
        distinct, which = torch.unique(valid.sum(dim=1), return_inverse=True)
        by_place = self.weights(distinct)[which].to(tokens)
        by_place = nn.functional.pad(by_place, (0, tokens.shape[1] - by_place.shape[1]))
        places = tokens.masked_fill(~valid[..., None], -math.inf).sort(dim=1, descending=True, stable=True).indices
        return torch.zeros_like(tokens).scatter(1, places, by_place[..., None].expand_as(tokens))


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

    def token_weights(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what every value is weighted by, (B, K, D): times the tokens and summed over K it is `forward`."""
        valid = torch.ones_like(tokens[..., 0]) if mask is None else mask.to(tokens)
        return (valid / valid.sum(dim=1, keepdim=True))[..., None].expand_as(tokens)


POOLINGS: dict[str, type[GPO | MeanPool]] = {"gpo": GPO, "mean": MeanPool}


def position_codes(length: int, width: int) -> Tensor:
    """Return 1-D sinusoidal position codes (length, width): sines at even, cosines at odd dimensions."""
    positions = torch.arange(length, dtype=torch.float32)[:, None]
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    codes = torch.zeros(length, width)
    codes[:, 0::2], codes[:, 1::2] = torch.sin(positions * rates), torch.cos(positions * rates)
    return codes


def _ascending(values: Tensor) -> Tensor:
    """Sort values (..., K) along their last dimension; NaN comes last."""
    if values.device.type == "cpu" and values.dtype in _BITS and values.shape[-1] <= _MOST:
        return _Sort.apply(values.contiguous())  # type: ignore[no-untyped-call]
    return values.sort(dim=-1, descending=True).values.flip(-1)


_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
_WIDER = {np.dtype(np.int32): np.int64, np.dtype(np.int16): np.int32}
_MOST = np.iinfo(np.int16).max


class _Sort(torch.autograd.Function):
    """Sort the last dimension on the CPU: numpy's vectorised sort of integers is many times as fast as torch's sort.

    With gradients, value and place of an entry share one integer of twice the width, so that one sort orders both and
    ties fall to the order of their places; without, the values alone are sorted.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """Sort (..., K), K up to 32,767; negative NaN comes first and positive NaN last."""
        flat = values.detach().reshape(-1, values.shape[-1])
        bits, needed = flat.view(_BITS[flat.dtype]).numpy(), ctx.needs_input_grad[0]
        ordered, places = np.empty_like(bits), np.empty(bits.shape if needed else 0, np.int16)

        def sort(part: slice) -> None:
            ordered[part] = _sorted_bits(bits[part], places[part] if needed else None)

        step = max(1, math.ceil(len(bits) / (4 * torch.get_num_threads())))
        parts = [slice(start, start + step) for start in range(0, len(bits), step)]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(sort, parts))
        ctx.places, ctx.parts = torch.from_numpy(places), parts
        return torch.from_numpy(ordered).view(values.dtype).reshape(values.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """Carry the gradient of each place back to the entry that came to stand there."""
        flat = gradients[0].reshape(-1, gradients[0].shape[-1])
        found = torch.empty_like(flat)
        for part in ctx.parts:  # places are widened a part at a time: all of them would be large
            found[part].scatter_(1, ctx.places[part].long(), flat[part])
        return found.reshape(gradients[0].shape)


def _sorted_bits(bits: np.ndarray, places: np.ndarray | None) -> np.ndarray:
    """Sort the bits of floats, rows (R, K) of int16 or int32, by value; `places` (R, K) int16 takes where they were."""
    width = 8 * bits.itemsize
    keys = _turned(bits)
    if places is None:
        keys.sort(axis=-1)
        return _turned(keys)
    keys = keys.astype(_WIDER[bits.dtype])
    keys <<= width
    keys |= np.arange(bits.shape[1], dtype=keys.dtype)
    keys.sort(axis=-1)
    places[:] = keys.astype(np.int16)  # the lowest 16 bits
    keys >>= width
    return _turned(keys.astype(bits.dtype))


def _turned(bits: np.ndarray) -> np.ndarray:
    """Turn the bits of floats into integers of the same order, and back."""
    return bits ^ ((bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max)
