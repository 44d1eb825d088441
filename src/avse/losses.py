"""The objectives: hinge with all or hardest negatives, InfoNCE, cross-view decorrelation (method, section 4).

Losses take scores or views, never a model. Row i of the scores is image i, column j text j; pair i is (i, i). Where
several processes train, these are the batch of all of them (`avse.parallel.gather`). A query without negatives, because
all pairs of the batch are true matches of each other, costs 0 and has no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from avse.texts import text_groups


def true_matches(image_ids: Sequence[Hashable], texts: Sequence[str]) -> Tensor:
    """Mark the pairs of a batch that are no negatives: same image, or texts identical up to case and spaces.

    Args:
        image_ids: B ids of the pairs' images.
        texts: B captions.

    Returns:
        (B, B) bool, True on the diagonal.

    >>> true_matches([1, 2, 1], ["a dog", "A  dog", "a cat"]).int().tolist()
    [[1, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    numbers: dict[Hashable, int] = {}
    images = torch.tensor([numbers.setdefault(value, len(numbers)) for value in image_ids])
    groups = torch.from_numpy(text_groups(texts))
    return (images[:, None] == images) | (groups[:, None] == groups)


@torch.no_grad()
def violation_rate(scores: Tensor, matches: Tensor, margin: float) -> Tensor:
    """Return the share of a batch's 2·B queries whose hardest negative lies within the margin (or above the match).

    Args:
        scores: (B, B).
        matches: (B, B) bool, True where a pair is no negative.
        margin: in units of the score.

    Returns:
        () in 0..1; a query without negatives counts as kept.

    >>> violation_rate(torch.tensor([[0.5, 0.4], [0.2, 0.7]]), torch.eye(2, dtype=torch.bool), 0.2).item()
    0.25
    """
    scores = _wide(scores)
    negatives = scores.masked_fill(matches, torch.finfo(scores.dtype).min)
    hardest = torch.cat([negatives.amax(dim=1), negatives.amax(dim=0)])
    return (hardest + margin > scores.diagonal().repeat(2)).float().mean()


class HardNegativeTripletLoss(nn.Module):
    """Hinge triplet loss in both directions, with all negatives or the hardest of each query (VSE++, BMVC 2018).

    Args:
        margin: in units of the score.
        hardest: only the hardest negative of each query counts.
    """

    def __init__(self, margin: float = 0.2, hardest: bool = True) -> None:
        super().__init__()
        self.margin, self.hardest = margin, hardest

    def forward(self, scores: Tensor, matches: Tensor) -> Tensor:
        """Return the sum over all queries of both directions.

        Args:
            scores: (B, B).
            matches: (B, B) bool, True where a pair is no negative.
        """
        scores = _wide(scores)
        positive = scores.diagonal()
        texts = (self.margin + scores - positive[:, None]).clamp(min=0).masked_fill(matches, 0)
        images = (self.margin + scores - positive[None, :]).clamp(min=0).masked_fill(matches, 0)
        if self.hardest:
            return texts.max(dim=1).values.sum() + images.max(dim=0).values.sum()
        return texts.sum() + images.sum()


class InfoNCE(nn.Module):
    """Symmetric cross-entropy over the batch (CLIP-style); other true matches are left out of the sums.

    Args:
        temperature: divides the scores.
        learnable: learn its logarithm, starting from `temperature`; kept at 0.01 or more.
    """

    def __init__(self, temperature: float = 0.05, learnable: bool = False) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)

    def forward(self, scores: Tensor, matches: Tensor) -> Tensor:
        """Return the mean over the pairs of both directions; arguments as in `HardNegativeTripletLoss`."""
        scores = _wide(scores)
        others = matches & ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        logits = (scores * self.log_scale.clamp(max=math.log(100.0)).exp()).masked_fill(others, -math.inf)
        target = torch.arange(len(scores), device=scores.device)
        return (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2


class CrossViewDecorrelationLoss(nn.Module):
    """L_reg: the dimension-wise regularisation between the views of an image (Barlow Twins; method, section 4).

    Args:
        off_diagonal_weight: lambda.
        form: `correct` standardises each dimension over the batch; `official` is the authors' code: L2-normalised
            views, columns L2-normalised without centring, divided by B again, not divided by D.
    """

    def __init__(self, off_diagonal_weight: float = 0.005, form: Literal["correct", "official"] = "correct") -> None:
        super().__init__()
        self.off_diagonal_weight, self.form = off_diagonal_weight, form

    def forward(self, views: Tensor) -> Tensor:
        """Return the mean over the pairs of views (B, V, D), taken before L2 normalisation; 0 for one view or B = 1.

        A dimension that is constant over the batch costs 1/D in the `correct` form and has no gradient.
        """
        batch, count, width = views.shape
        if min(batch, count) < 2:
            return views.new_zeros(())
        views = _wide(views)
        if self.form == "correct":
            # std has a gradient of 0 where it is 0; that of a square root is not finite
            columns = (views - views.mean(dim=0)) / (views.std(dim=0, correction=0) + 1e-5)
        else:
            unit = nn.functional.normalize(views, dim=-1)
            columns = nn.functional.normalize(unit, dim=0)
        total = views.new_zeros(())
        pairs = [(first, second) for first in range(count) for second in range(first + 1, count)]
        for first, second in pairs:
            correlation = columns[:, first].T @ columns[:, second] / batch
            diagonal = correlation.diagonal()
            off_diagonal = correlation.square().sum() - diagonal.square().sum()
            total = total + (diagonal - 1).square().sum() + self.off_diagonal_weight * off_diagonal
        scale = width if self.form == "correct" else 1
        return total / (scale * len(pairs))

    def floor(self, batch: int, width: int) -> float:
        """Return what the `correct` off-diagonal term cannot fall below for B ≤ D: λ(D²/(B-1) - D)/D, else 0."""
        if self.form != "correct" or batch < 2 or batch > width:
            return 0.0
        return self.off_diagonal_weight * (width / (batch - 1) - 1)


def _wide(tensor: Tensor) -> Tensor:
    """Return half precision as fp32: sums and margins would lose what the scores have."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
