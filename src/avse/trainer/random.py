"""The states of the generators that dropout draws from."""

from __future__ import annotations

import torch
from torch import Tensor


def random_states() -> list[Tensor]:
    """Return the CPU's state and, where one is in use, the GPU's."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state()] if used else [])]


def set_random_states(states: list[Tensor]) -> None:
    """Set what `random_states` returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1])
