"""Watch over a training: embeddings that become one, recalls at chance, losses that are not finite.

Knows figures only: no model, no data, no optimiser. What it remembers are plain values, so that a resumed run goes on
with the same decisions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# What the limits stand on: frozen EfficientNet-Lite0 and MiniLM, 280 made scenes, batches of 32, chance at rSum 55.
TOLERANCE = 0.05
"""Of the margin, and of one block's score: how near the hinge lies to 2·B·margin when nothing tells pairs apart.
Measured: fresh models 1.06 to 1.6 times the plateau, collapsed ones 1.00 to 1.05."""
LOW_SPREAD = 0.02
"""With the hinge at its plateau, for the lower of both spreads. The plateau alone is no sign: trainings that take the
hardest negatives after the first epoch or later sit on it with 0.03 to 0.1 and still reach rSum 237 to 266. With them
from the first step and too high a rate the spread falls to 0.004 and below, and rSum ends at 73 to 176."""
NO_SPREAD = 1e-3
"""By itself, whatever the objective. Fresh heads begin at 0.0046 or more on random encoders, 0.3 on trained ones."""
PATIENCE = (30, 200)
"""Steps in a row that make a collapse: one epoch, within these limits. Learning crosses the plateau in fewer."""
FALLBACK = 2
"""Times the patience: steps with all negatives after the first collapse, twice as many after each further one. Measured
with 60 steps: best rSum 218 in the place of 180 (learning rate 0.01), 201 of 133 (0.05), 179 of 74 (0.5)."""
CHANCE = 0.01
"""A recall is at chance while guessing reaches it with a probability above this."""
GALLERY = 50
"""Pictures below which chance is so high that nothing can be said."""

WAY_OUT = (
    "lower train.lr, take all negatives for longer (train.hard_negative_start_epoch), or begin with "
    "train.infonce_warmup_epochs"
)
WAY_OUT_OF_RATES = "lower train.lr (and train.encoder_lr, where encoders are trained), or add train.warmup_steps"
WAY_OUT_OF_ALL = f"{WAY_OUT_OF_RATES}, or set train.objective=infonce"


@torch.no_grad()
def spread(blocks: Tensor) -> Tensor:
    """Return how far unit blocks (B, P, C) lie apart, a scalar: 0 all the same, 1 - 1/B all at right angles.

    It is 1 - |mean over the batch|² averaged over the P positions: 1 - the mean cosine of all B² pairs, equal rows too.

    >>> spread(torch.eye(4)[:, None]).item(), spread(torch.ones(4, 1, 1)).item()
    (0.75, 0.0)
    """
    return 1 - blocks.float().mean(dim=0).square().sum(dim=-1).mean()


class CollapseWatch:
    """Tells when a training's embeddings have become one, and asks for all negatives for a while where it may.

    A phase is a time of one objective: InfoNCE, all negatives, hardest negatives. A collapse is told once a phase at
    most, recalls at chance once.

    Args:
        margin: of the hinge.
        score_scale: what S is counted in: 1 for S / Q, Q for the sum over Q blocks.
        steps_an_epoch: a collapse is believed after one epoch of it, within `PATIENCE`.
        fallback: after a collapse with hardest negatives, `all_negatives` is true for a while.
    """

    def __init__(
        self, *, margin: float, score_scale: float = 1.0, steps_an_epoch: int = PATIENCE[1], fallback: bool = False
    ) -> None:
        self.margin, self.score_scale, self.fallback = margin, score_scale, fallback
        self.patience = min(max(steps_an_epoch, PATIENCE[0]), PATIENCE[1])
        self._phase, self._excess = "", math.nan
        self._stuck, self._since = 0, 0.0
        self._told_steps = self._told_recall = False
        self._left = self._falls = 0

    @property
    def all_negatives(self) -> bool:
        """Whether the next step's hinge shall take all negatives in the place of the hardest."""
        return self._left > 0

    def step(
        self, hinge: float | None, *, batch_size: int, hardest: bool, spread_images: float, spread_texts: float
    ) -> str | None:
        """Look at one step.

        Args:
            hinge: its value, summed over both directions; None: the step's objective was InfoNCE.
            batch_size: B, over all processes.
            hardest: whether the step's hinge took the hardest negatives only.
            spread_images: `spread` of the image blocks.
            spread_texts: `spread` of the text blocks.

        Returns:
            What was seen and what to do about it, once a phase; None: nothing to say.
        """
        self._enter("infonce" if hinge is None else "hardest" if hardest else "all")
        if self._left:  # what is being done about a collapse is let be
            self._left -= 1
            return None
        lowest, side = min((spread_images, "images"), (spread_texts, "texts"))
        seen = f"spread of the {side} {lowest:.2g} (limit {NO_SPREAD:g}: all are nearly one vector)"
        collapsed = lowest < NO_SPREAD
        if hinge is not None and hardest and self.margin:
            plateau = 2 * batch_size * self.margin
            # Scores that are all the same give exactly the plateau. One batch is noisy, ten are not.
            excess = (hinge / plateau - 1) / self.score_scale
            self._excess = excess if math.isnan(self._excess) else 0.9 * self._excess + 0.1 * excess
            if abs(self._excess) < TOLERANCE and lowest < LOW_SPREAD:
                collapsed = True
                seen = (
                    f"hinge {hinge:.4g} stays at 2·B·margin = {plateau:.4g}, as if all scores were the same, with a "
                    f"spread of the {side} of {lowest:.2g} (limit {LOW_SPREAD:g})"
                )
        if not collapsed:
            self._stuck = 0
            return None
        if self._stuck == 0 or lowest > 2 * self._since:  # from nearly parallel vectors a good start grows apart
            self._stuck, self._since = 0, lowest
        self._stuck += 1
        if self._stuck < self.patience or self._told_steps:
            return None
        self._told_steps = True
        return f"collapse in {self._stuck} steps in a row: {seen}; {self._react()}"

    def validated(
        self, epoch: int, *, i2t: Mapping[int, float], t2i: Mapping[int, float], num_images: int, num_texts: int
    ) -> str | None:
        """Look at an epoch's recalls on validation; return what is to be told, once.

        The first epoch (0) and galleries below `GALLERY` pictures are not judged.

        Args:
            epoch: from 0.
            i2t: K to Recall@K in percent, image to text; one K above chance is learning.
            t2i: likewise, text to image.
            num_images: of the gallery.
            num_texts: likewise.
        """
        if epoch < 1 or num_images < GALLERY or self._told_recall:
            return None
        for recalls, queries in ((i2t, num_images), (t2i, num_texts)):
            for k, recall in recalls.items():  # a picture has as many texts as the others: chance is k of the pictures
                chance = min(1 - 1e-9, k / num_images)
                if _at_least(round(recall / 100 * queries), queries, chance) < CHANCE:
                    return None
        self._told_recall = True
        k = max(i2t)
        return (
            f"validation is at chance after {epoch + 1} epochs: R@{k} i2t {i2t[k]:.2f}, t2i {t2i[k]:.2f}, guessing "
            f"gives {100 * k / num_images:.2f}; look at the pairs of pictures and captions, {self._way_out()}"
        )

    def _way_out(self) -> str:
        if self._phase != "hardest":
            return WAY_OUT_OF_ALL if self._phase == "all" else WAY_OUT_OF_RATES
        return WAY_OUT if self.fallback else f"{WAY_OUT}, or set train.on_collapse=all_negatives"

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs: plain values."""
        state = {name: getattr(self, f"_{name}") for name in _STATE}
        return state | {"excess": None if math.isnan(self._excess) else self._excess}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name in _STATE:
            setattr(self, f"_{name}", state[name])
        if self._excess is None:
            self._excess = math.nan

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase, self._excess, self._stuck, self._told_steps = phase, math.nan, 0, False

    def _react(self) -> str:
        """Say what to do, and begin the fallback where it was asked for."""
        if self._phase != "hardest" or not self.fallback:
            return self._way_out()
        self._left = FALLBACK * self.patience * 2**self._falls
        self._falls += 1
        return f"the hinge takes all negatives for the next {self._left} steps; if that does not help, lower train.lr"


_STATE = ("phase", "excess", "stuck", "since", "told_steps", "told_recall", "left", "falls")


class NanPolicy:
    """Counts steps that are left out because loss or gradient is not finite, and says when training has to stop.

    Args:
        max_in_a_row: so many are left out; one more ends the training.
    """

    def __init__(self, max_in_a_row: int) -> None:
        self.max_in_a_row, self.in_a_row, self.skipped = max_in_a_row, 0, 0

    def start_epoch(self) -> None:
        """Count `skipped` anew; a row of bad steps goes on over the end of an epoch."""
        self.skipped = 0

    def may_go_on(self, finite: bool) -> bool:
        """Count one step, and tell whether training may go on."""
        self.in_a_row = 0 if finite else self.in_a_row + 1
        self.skipped += not finite
        return self.in_a_row <= self.max_in_a_row

    def message(self, epoch: int, step: int, lr: float, encoder_lr: float) -> str:
        """Say at which step (counted from 1) of which epoch (from 0) it ended, and what to change."""
        return (
            f"loss or gradient not finite in {self.in_a_row} steps in a row (epoch {epoch}, step {step}); lower "
            f"train.lr ({lr:g}) or train.encoder_lr ({encoder_lr:g}), use fp32; then "
            "start anew (--force, or another --out)"
        )

    def state(self) -> dict[str, int]:
        """Return what a resumed run needs: plain values."""
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load(self, state: dict[str, int]) -> None:
        """Go on from what `state` returned."""
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]


def _at_least(hits: int, trials: int, probability: float) -> float:
    """P(X ≥ hits) of a binomial: what guessing reaches."""
    log, other = math.log(probability), math.log1p(-probability)
    below = (
        math.lgamma(trials + 1) - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * log + (trials - k) * other
        for k in range(hits)
    )
    return max(0.0, 1 - math.fsum(map(math.exp, below)))
