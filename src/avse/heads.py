"""The two heads between tokens and pooled vectors (method, section 2). Know tokens, no encoder.

Both work on a process's share of a batch, also on none of it (B = 0); the batch norm counts all shares as one batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avse.parallel import gather_objects, total, world
from avse.pooling import POOLINGS


class ImageHead(nn.Module):
    """Linear W→D and pooling (GPO): the cells of a view become one vector.

    Args:
        width: W of the image encoder.
        embed_dim: D.
        dropout: on the tokens.
        pooling: `gpo` or `mean`.
    """

    def __init__(self, width: int, embed_dim: int, dropout: float = 0.0, pooling: str = "gpo") -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.project = _linear(width, embed_dim)
        self.pool = POOLINGS[pooling]()

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens (B, K, W), with an optional mask (B, K) of valid ones -> (B, D)."""
        return _pool(self.pool, self.project(self.dropout(tokens)), mask)

    def forward_views(
        self, tokens: Tensor, views: Tensor, mask: Tensor | None = None, factors: Tensor | None = None
    ) -> Tensor:
        """Pool several views of one grid; every token is projected once.

        Args:
            tokens: (B, G, W).
            views: (B, V, K) int64 indices into G.
            mask: (B, G) True where a token is valid.
            factors: (B, V, K), what the projected tokens of a view are multiplied by.

        Returns:
            (B, V, D).
        """
        batch, count, keep = views.shape
        projected = self.project(self.dropout(tokens))
        index = views.reshape(batch, count * keep)
        chosen = projected.gather(1, index[..., None].expand(-1, -1, projected.shape[2]))
        if factors is not None:
            chosen = chosen * factors.reshape(batch, count * keep, 1).to(chosen.dtype)
        valid = None if mask is None else mask.gather(1, index).reshape(batch * count, keep)
        pooled = _pool(self.pool, chosen.reshape(batch * count, keep, chosen.shape[2]), valid)
        return pooled.reshape(batch, count, chosen.shape[2])


class TextHead(nn.Module):
    """Linear(W→D) plus a two-layer MLP residual, pooling (GPO) over the valid tokens, LayerNorm.

    Args:
        width: W of the text encoder.
        embed_dim: D.
        dropout: on the tokens.
        masked_batch_norm: the batch norm counts valid tokens only; False counts the padding too, as the authors do:
            then every process must pad its share to the same L.
        pooling: `gpo` or `mean`.
    """

    def __init__(
        self,
        width: int,
        embed_dim: int,
        dropout: float = 0.2,
        masked_batch_norm: bool = True,
        pooling: str = "gpo",
    ) -> None:
        super().__init__()
        self.masked_batch_norm = masked_batch_norm
        self.dropout = nn.Dropout(dropout)
        self.project = _linear(width, embed_dim)
        self.mlp = nn.Sequential(
            nn.Linear(width, embed_dim // 2),
            TokenBatchNorm(embed_dim // 2),
            nn.ReLU(),
            nn.Linear(embed_dim // 2, embed_dim),
        )
        self.pool = POOLINGS[pooling]()
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Pool tokens (B, L, W) under a mask (B, L), non-zero where a token is valid -> (B, D).

        Raises:
            ValueError: as `features`, or a text without tokens.
        """
        return self.norm(_pool(self.pool, self.features(tokens, mask), mask.bool()))

    def features(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Project tokens (B, L, W) under a mask (B, L) before the pooling -> (B, L, D).

        Raises:
            ValueError: an unmasked batch norm over processes that pad to different lengths.
        """
        valid = mask.bool()
        if self.training and not self.masked_batch_norm and len(lengths := set(gather_objects(mask.shape[1]))) > 1:
            raise ValueError(
                f"the processes pad their texts to {sorted(lengths)} tokens, which an unmasked batch norm counts: "
                "pad to one length, or set model.masked_batch_norm to true"
            )
        tokens = self.dropout(tokens)
        chosen = tokens[valid] if self.masked_batch_norm else tokens.flatten(0, 1)
        features = self.project(chosen) + self.mlp(chosen)
        if self.masked_batch_norm:
            packed, features = features, features.new_zeros(*valid.shape, features.shape[-1])
            features[valid] = packed
        else:
            features = features.reshape(*valid.shape, features.shape[-1])
        return features


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm over rows (R, H), whose training statistics are those of the rows of all processes together."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise rows (R, H); a process may have none.

        Raises:
            ValueError: in training, fewer than two rows in all.
        """
        if not self.training or world() == 1:
            return super().forward(rows)
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        count = int(total(torch.tensor(len(rows), device=rows.device)))
        if count < 2:
            raise ValueError(f"{count} token in the whole batch; batch norm needs two or more in training")
        mean = total(wide.sum(dim=0)) / count
        centred = wide - mean
        variance = total(centred.square().sum(dim=0)) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)
            self.running_var.lerp_((variance * (count / (count - 1))).to(self.running_var), self.momentum)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(rows.dtype)


def _pool(pool: nn.Module, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Pool tokens (B, K, D); of no sets (B = 0), which the poolings do not take, none with a gradient to pass on."""
    return pool(tokens, mask) if len(tokens) else tokens.sum(dim=1)


def _linear(width: int, embed_dim: int) -> nn.Linear:
    layer = nn.Linear(width, embed_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def unit_blocks(pooled: Tensor, block_width: int) -> Tensor:
    """Cut pooled vectors into unit blocks: (B, D) -> (B, D/C, C), or views (B, V, D) -> (B, V·D/C, C).

    >>> import torch
    >>> unit_blocks(torch.tensor([[3.0, 4.0, 0.0, 2.0]]), 2).mul(10).round().int().tolist()
    [[[6, 8], [0, 10]]]
    """
    flat = pooled.flatten(1)
    blocks = flat.reshape(len(flat), flat.shape[1] // block_width, block_width)
    return nn.functional.normalize(blocks.to(torch.promote_types(blocks.dtype, torch.float32)), dim=-1)
