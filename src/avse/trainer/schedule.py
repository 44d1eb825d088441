"""Rates: how they rise, fall and differ between heads and encoders. Knows a configuration and parameters; no data."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from avse.config import TrainConfig
from avse.model import AVSE
from avse.trainer.step import trained_encoders


def parameter_groups(model: AVSE, losses: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Group what is trained by its learning rate (heads, encoders) and weight decay (none on biases and norms)."""
    encoders = {id(p) for encoder in (model.image_encoder, model.text_encoder) for p in encoder.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in (p for module in (model, losses) for p in module.parameters() if p.requires_grad):
        rate = config.encoder_lr if id(parameter) in encoders else config.lr
        decay = config.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": d} for (rate, d), p in groups.items()]


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> list[float]:
    """Multiply every group's own rate by a factor; return the distinct rates, highest first."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return sorted({group["lr"] for group in optimizer.param_groups}, reverse=True)


def hold_encoders(model: AVSE, held: bool) -> None:
    """Keep the encoders that are trained as they are for now, in evaluation mode, or let them go."""
    for encoder in trained_encoders(model):
        for parameter in encoder.trainable():
            parameter.requires_grad_(not held)
            parameter.grad = None
        if held:
            encoder.eval()


def epoch_seed(seed: int, epoch: int, rank: int = 0) -> int:
    """Return the seed of everything random in an epoch; dropout differs from rank to rank."""
    return int(np.random.SeedSequence([seed, epoch, *([rank] if rank else [])]).generate_state(1)[0])


def rate_factor(config: TrainConfig, step: int, total: int, epoch: int) -> float:
    """Return what the learning rates are multiplied by at a step.

    >>> c = TrainConfig(schedule="cosine", warmup_steps=10)
    >>> [round(rate_factor(c, s, 110, 0), 3) for s in (0, 9, 10, 60, 109)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.step_factor ** sum(epoch >= at for at in config.step_epochs)
    return 1.0
