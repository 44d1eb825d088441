"""Float32 that is float32: cuDNN's convolutions and GRUs would otherwise compute in tf32 on a GPU, and err by 1e-3.

Knows torch alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep cuDNN from tf32 meanwhile, so that an embedding made on a GPU is the processor's to some 1e-6.

    torch's products of matrices are exact by default. Also a decorator; autocast's bf16 and fp16 are untouched.
    """
    if not torch.cuda.is_available() or not torch.backends.cudnn.allow_tf32:
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True
