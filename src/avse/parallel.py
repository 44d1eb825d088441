"""What the processes that train one model tell each other. Knows tensors and torch.distributed; no model, no loss.

Where there is one process, every function answers at once and changes nothing. Otherwise all processes must call the
same functions in the same order: each waits for the others.

Gradients: the backward pass of a collective sums over the processes. So with the whole loss computed by every process
on what `gather` returns, and with `average_gradients` afterwards, every gradient is that of one process with the whole
batch; nothing is multiplied by the number of processes.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")

TIMEOUT = timedelta(hours=6)
"""Longest wait for another process: one may fill a cache for the others. One that ends is noticed at once."""
BUCKET = 25 << 20
"""Bytes of gradients that travel together."""


class ParallelError(RuntimeError):
    """The processes cannot go on together; the message says what happened and where to look."""


def start(device: str | None = None) -> str:
    """Join the processes that torchrun or accelerate launched, if there are any, and return this one's device.

    Args:
        device: `cpu`, or `cuda`, of which each process of a machine takes one; None: cuda where there is one.

    Raises:
        ValueError: a device that the processes cannot share out.
        ParallelError: the processes do not find each other.
    """
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    count = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if count == 1:
        return name
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} for {count} processes: ask for cuda (each takes its own GPU) or cpu")
    if name == "cuda":
        local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= there:
            raise ValueError(f"process {local + 1} of this machine finds {there} GPUs: launch as many, or ask for cpu")
        torch.cuda.set_device(local)
        name = f"cuda:{local}"
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo" if name == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise ParallelError(
                f"{count} processes do not find each other: {error}; look at MASTER_ADDR, MASTER_PORT and the firewall"
            ) from error
        atexit.register(_leave)
    return name


def _leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Tell whether this is process 0, the one that writes and prints."""
    return rank() == 0


def own_rows(count: int) -> slice:
    """Return this process's part of `count` rows: contiguous, nearly as many as the others'."""
    share, more = divmod(count, world())
    first = rank() * share + min(rank(), more)
    return slice(first, first + share + (rank() < more))


# Tensors.
def gather(tensor: Tensor) -> Tensor:
    """Join the rows of every process: (b_r, ...), any b_r, also 0 -> (Σ b_r, ...) in the order of the processes.

    Backward sums the gradient over the processes and returns the own rows. The other dimensions must be the same.
    """
    return tensor if world() == 1 else _Gather.apply(tensor)  # type: ignore[no-untyped-call]


def total(tensor: Tensor) -> Tensor:
    """Sum a tensor of any shape, the same everywhere, over the processes; backward sums the gradient too."""
    return tensor if world() == 1 else _Total.apply(tensor)  # type: ignore[no-untyped-call]


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes; they must give the same parameters in the same order.

    A parameter without a gradient counts as zero where another process has one, and stays without where none has.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if world() == 1 or not trained:
        return
    having = torch.tensor([p.grad is not None for p in trained], dtype=torch.int32, device=trained[0].device)
    found = total(having).tolist()
    for bucket in _buckets(p for p, count in zip(trained, found) if count):
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).detach().reshape(-1) for p in bucket])
        mean = _sum(flat) / world()
        for parameter, part in zip(bucket, torch.split(mean, [p.numel() for p in bucket])):
            parameter.grad = part.view_as(parameter)


def broadcast_parameters(module: nn.Module) -> None:
    """Give every process the parameters and buffers of process 0."""
    if world() == 1:
        return
    for tensor in chain(module.parameters(), module.buffers()):
        held = tensor.detach().contiguous()
        with _together():
            dist.broadcast(held, 0)
        tensor.detach().copy_(held)


# Objects and order.
def gather_objects(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    with _together():
        dist.all_gather_object(values, value)
    return values


def broadcast_object(value: T, source: int = 0) -> T:
    """Return the value that process `source` gives."""
    if world() == 1:
        return value
    values = [value]
    with _together():
        dist.broadcast_object_list(values, source)
    return values[0]


def any_rank(flag: bool) -> bool:
    """Tell whether the flag is set in any process."""
    return any(gather_objects(flag))


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block in process 0, then in the others, which find what it left on disk.

    Raises:
        ParallelError: in the others, where the block failed in process 0.
    """
    if not is_main():
        if failure := broadcast_object(""):
            raise ParallelError(f"process 0 failed before process {rank()} could go on: {failure}")
        yield
        return
    try:
        yield
    except BaseException as error:
        broadcast_object(f"{type(error).__name__}: {error}")
        raise
    broadcast_object("")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        own = torch.tensor([len(tensor)], device=tensor.device)
        sizes = torch.cat(_all(own)).tolist()
        ctx.rows = slice(sum(sizes[: rank()]), sum(sizes[: rank() + 1]))
        padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        return torch.cat([part[:size] for part, size in zip(_all(padded), sizes)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum(gradients[0])[ctx.rows]


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _sum(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _sum(gradients[0])


def _all(tensor: Tensor) -> list[Tensor]:
    """Return the tensors, contiguous and of one shape, of all processes."""
    parts = [torch.empty_like(tensor) for _ in range(world())]
    with _together():
        dist.all_gather(parts, tensor)
    return parts


def _sum(tensor: Tensor) -> Tensor:
    """Return a new tensor, summed over the processes; half precision is added in fp32."""
    wide = torch.float32 if tensor.dtype in (torch.float16, torch.bfloat16) else tensor.dtype
    summed = tensor.detach().to(wide, copy=True, memory_format=torch.contiguous_format)
    with _together():
        dist.all_reduce(summed)
    return summed.to(tensor.dtype)


def _buckets(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Group parameters of one type and device, in their order, until BUCKET bytes are together."""
    begun: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        kind = (parameter.dtype, parameter.device)
        bucket = begun.setdefault(kind, [])
        bucket.append(parameter)
        if sum(p.nbytes for p in bucket) >= BUCKET:
            yield begun.pop(kind)
    yield from begun.values()


@contextmanager
def _together() -> Iterator[None]:
    """Say what a collective that fails means."""
    try:
        yield
    except RuntimeError as error:
        raise ParallelError(
            f"process {rank()} of {world()} lost the others: one of them ended, or was not there within "
            f"{TIMEOUT.total_seconds() / 3600:g} hours; the first error of its output says why ({error})"
        ) from error
