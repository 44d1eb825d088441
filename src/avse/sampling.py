"""Radial bias sampling: which cells of an image's patch grid each view keeps.

Knows a grid and nothing else: no encoder, no features. Source: method, section 1 (paper, section on RBS).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Method = Literal["gumbel", "nearest", "uniform"]


def radial_bias_sample(
    grid: tuple[int, int],
    num_views: int = 2,
    keep: int | None = None,
    alpha: float = 4.0,
    centers: Tensor | None = None,
    method: Method = "gumbel",
    generator: torch.Generator | None = None,
    batch: int = 1,
) -> Tensor:
    """Draw the cells that each view of each image keeps.

    A centre is drawn uniformly from the G = h·w cells; a cell at d cells from it has p ∝ exp(-alpha·d); K cells are
    kept without replacement under p.

    Args:
        grid: (h, w), rows and columns of the patch grid.
        num_views: V.
        keep: K, 1 to G cells a view; None keeps floor(0.8·G).
        alpha: strength of the bias, per cell of distance.
        centers: (B, V) int64 row-major cells; None draws them.
        method: `gumbel` draws without replacement (Gumbel top-k on log p, exact where p underflows); `nearest` takes
            the K cells nearest to the centre, ties to the lowest index (the authors' way; alpha has no effect);
            `uniform` ignores the centre.
        generator: source of randomness on the CPU.
        batch: B, when `centers` is None.

    Returns:
        (B, V, K) int64 row-major cells, ascending within a view.

    Raises:
        ValueError: for K outside 1..G, centres outside the grid or of another number of views.

    >>> radial_bias_sample((3, 3), num_views=1, keep=5, centers=torch.tensor([[4]]), method="nearest").tolist()
    [[[1, 3, 4, 5, 7]]]
    """
    height, width = grid
    cells = height * width
    keep = math.floor(0.8 * cells) if keep is None else keep
    if not 1 <= keep <= cells:
        raise ValueError(f"keep is {keep}; a {height}x{width} grid allows 1 to {cells} cells a view")
    if centers is None:
        centers = torch.randint(cells, (batch, num_views), generator=generator)
    elif centers.ndim != 2 or centers.shape[1] != num_views:
        raise ValueError(f"centers have shape {tuple(centers.shape)}; expected (B, {num_views})")
    elif centers.numel() and not 0 <= int(centers.min()) <= int(centers.max()) < cells:
        raise ValueError(f"centers lie in {int(centers.min())}..{int(centers.max())}; cells are 0..{cells - 1}")
    squared = _squared_distances(height, width)[centers.cpu()]  # (B, V, G) exact integers
    if method == "nearest":
        order = squared.sort(dim=-1, stable=True).indices
    elif method in ("gumbel", "uniform"):
        log_p = -alpha * squared.double().sqrt() if method == "gumbel" else torch.zeros(squared.shape).double()
        noise = -torch.empty_like(log_p).exponential_(generator=generator).log()
        order = (log_p + noise).sort(dim=-1, descending=True, stable=True).indices
    else:
        raise ValueError(f"method is {method!r}; known are gumbel, nearest, uniform")
    return order[..., :keep].sort(dim=-1).values


def evaluation_centers(grid: tuple[int, int], num_views: int) -> Tensor:
    """Return fixed, well-spread centres, (V,) int64 cells: a Hammersley set on the grid.

    They depend on the grid and V alone, so that an embedding depends on nothing but the model and its input.

    >>> evaluation_centers((4, 4), 2).tolist()
    [5, 15]
    """
    height, width = grid
    cells = []
    for view in range(num_views):
        radical, fraction, index = 0.0, 0.5, view
        while index:
            radical, index, fraction = radical + fraction * (index & 1), index >> 1, fraction / 2
        row = int((view + 0.5) / num_views * height)
        column = int(min(radical + 0.5 / num_views, 1 - 1e-9) * width)
        cells.append(row * width + column)
    return torch.tensor(cells, dtype=torch.int64)


def evaluation_views(grid: tuple[int, int], num_views: int, keep: int) -> Tensor:
    """Return the deterministic views of evaluation: (V, K) int64, the K cells nearest to each fixed centre."""
    centers = evaluation_centers(grid, num_views)[None]
    return radial_bias_sample(grid, num_views, keep, centers=centers, method="nearest")[0]


def kept_cells(cells: int, keep: float, count_prefix: bool = False) -> int:
    """Return K for a share `keep` of G cells: floor(keep·G), or the authors' int(keep·(G+1)) up to G; at least 1."""
    wanted = int(keep * (cells + 1)) if count_prefix else math.floor(keep * cells + 1e-9)
    return max(1, min(cells, wanted))


def mean_overlap(views: Tensor, cells: int) -> float:
    """Return the mean share of cells that two views of an image have in common.

    Args:
        views: (B, V, K) cells.
        cells: G.
    """
    batch, num_views, keep = views.shape
    if num_views < 2:
        return 1.0
    member = torch.zeros(batch, num_views, cells).scatter_(2, views, 1.0)
    common = member @ member.transpose(1, 2)
    pairs = num_views * (num_views - 1)
    return float((common.sum((1, 2)) - common.diagonal(dim1=1, dim2=2).sum(1)).mean() / (pairs * keep))


def _squared_distances(height: int, width: int) -> Tensor:
    """Squared Euclidean distance in cells between all cells: (G, G) int64."""
    rows = torch.arange(height).repeat_interleave(width)
    columns = torch.arange(width).repeat(height)
    return (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2


class RadialBiasSampling(torch.nn.Module):
    """The views of a batch: drawn in training, fixed in evaluation. One view keeps every cell.

    Args:
        num_views: V.
        keep: share of the cells kept in training.
        keep_eval: share kept in evaluation; None: the same.
        alpha: strength of the bias.
        method: how training views are drawn.
        count_prefix: count K as the authors' code does.
    """

    def __init__(
        self,
        num_views: int,
        keep: float,
        keep_eval: float | None,
        alpha: float,
        method: Method,
        count_prefix: bool,
    ) -> None:
        super().__init__()
        self.num_views, self.keep, self.keep_eval = num_views, keep, keep if keep_eval is None else keep_eval
        self.alpha, self.method, self.count_prefix = alpha, method, count_prefix

    def overlap(self, grid: tuple[int, int], draws: int = 512) -> float:
        """Measure the mean share of a grid's cells that two training views of one image have in common."""
        training = self.training
        drawn = self.train()(grid, draws, torch.Generator().manual_seed(0))
        self.train(training)
        return mean_overlap(drawn, grid[0] * grid[1])

    def forward(self, grid: tuple[int, int], batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Return (B, V, K) int64 cells of a grid (h, w); `generator` counts in training only."""
        cells = grid[0] * grid[1]
        if self.num_views == 1:
            return torch.arange(cells).expand(batch, 1, cells)
        keep = kept_cells(cells, self.keep if self.training else self.keep_eval, self.count_prefix)
        if self.training:
            return radial_bias_sample(
                grid, self.num_views, keep, self.alpha, method=self.method, generator=generator, batch=batch
            )
        return evaluation_views(grid, self.num_views, keep).expand(batch, -1, -1)
