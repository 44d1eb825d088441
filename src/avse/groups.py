"""Group sampling: each of V learnt tokens takes the features nearest to it (method, section 7, the region branch).

The supplement's views of regions, which have no grid to draw a centre on. Knows features (B, G, W) and their mask; no
encoder, no pooling. What follows the choice, one linear layer for all groups and the pooling, is the image head.

How the tokens learn: which features are nearest is a choice without a gradient, and the supplement does not say where
one comes from. Here every kept feature is multiplied by a factor that is exactly 1, whose gradient is that of a sigmoid
of its cosine against the cosine of the last one kept: a token moves towards features that its view should weigh more.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avse.sampling import kept_cells

GATE_WIDTH = 0.1
"""Cosine over which the sigmoid of the straight-through factor rises."""


class GroupSampling(nn.Module):
    """V learnt tokens, each of which takes a share of an image's features, the same way in training and evaluation.

    Nearness is the cosine. Ties fall to the lowest index. An image's choice depends on its own features alone.

    Args:
        num_views: V.
        width: W of the features.
        keep: share of the valid features that a token takes in training, rounded down, at least one.
        keep_eval: share in evaluation; None: the same.
        count_prefix: count K as the authors' code does.
    """

    def __init__(
        self, num_views: int, width: int, keep: float, keep_eval: float | None = None, count_prefix: bool = False
    ) -> None:
        super().__init__()
        self.keep, self.keep_eval = keep, keep if keep_eval is None else keep_eval
        self.count_prefix = count_prefix
        self.tokens = nn.Parameter(torch.randn(num_views, width) * width**-0.5)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Choose the features of every view.

        Args:
            features: (B, G, W).
            mask: (B, G) True where a feature is valid; K then counts an image's valid features.

        Returns:
            Indices (B, V, K) int64 into G, ascending in a view, K that of the fullest image; the places that an image
            with fewer has left over point to a feature that is not valid, which the pooling leaves out by the same
            mask. And factors (B, V, K), 1 in value, that carry the tokens' gradient; None where no gradient is wanted.
        """
        share = self.keep if self.training else self.keep_eval
        cosines = self._exact_cosines(features)
        counts = [features.shape[1]] * len(features) if mask is None else mask.sum(dim=1).tolist()
        kept = torch.tensor([kept_cells(count, share, self.count_prefix) for count in counts], device=features.device)
        if mask is not None:
            cosines = cosines.masked_fill(~mask[:, None], -torch.inf)
        ordered, order = cosines.sort(dim=-1, descending=True, stable=True)
        longest = int(kept.max())
        views = order[..., :longest]
        beyond = torch.arange(longest, device=kept.device) >= kept[:, None, None]
        views = torch.where(beyond, order[..., -1:], views).sort(dim=-1).values
        if not (torch.is_grad_enabled() and self.tokens.requires_grad):
            return views, None
        cuts = ordered.gather(2, (kept - 1)[:, None, None].expand(-1, ordered.shape[1], 1))
        unit = nn.functional.normalize(features.detach(), dim=-1)
        near = torch.einsum("bgw,vw->bvg", unit, nn.functional.normalize(self.tokens, dim=-1).to(unit.dtype))
        soft = torch.sigmoid((near.gather(2, views) - cuts) / GATE_WIDTH)
        return views, soft - soft.detach() + 1

    @torch.no_grad()
    def _exact_cosines(self, features: Tensor) -> Tensor:
        """Cosines (B, V, G) float32, summed row by row: equal features get equal ones, whatever stands beside them."""
        unit = nn.functional.normalize(features.float(), dim=-1)
        tokens = nn.functional.normalize(self.tokens.float(), dim=-1)
        return torch.stack([(unit * token).sum(dim=-1) for token in tokens], dim=1)
