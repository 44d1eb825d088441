"""Measurements of speed: each module measures one thing and returns rows (dicts); `avse bench` prints them.

What they share is here: the machine's line, random unit blocks, ways that are timed in turns, and a process of its own
for a measurement.
Knows no printing and no arguments.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Name = TypeVar("_Name")
_Found = TypeVar("_Found")
_THREADS = ("OMP", "OPENBLAS", "MKL", "NUMBA", "RAYON")
"""Libraries that read <NAME>_NUM_THREADS when they are loaded."""


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what a figure of speed stands with: processor, cores, GPU where it was used, versions, threads, date."""
    import torch

    from avse.trainer.record import processor

    return {
        **({} if device == "cpu" else {"gpu": torch.cuda.get_device_name(device)}),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def units(random: int | np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Return random float32 vectors of length 1 over the last dimension, by a seed or a generator."""
    values = np.random.default_rng(random).standard_normal(shape, np.float32)
    values /= np.linalg.norm(values, axis=-1, keepdims=True)
    return values


def interleaved(ways: Mapping[_Name, Callable[[], object]], runs: int, *, device: str = "cpu") -> dict[_Name, float]:
    """Time several ways in turns, so that a slow moment of the machine hits all of them.

    Args:
        ways: name -> what to run.
        runs: timed turns; one turn before them is not counted.
        device: where they compute; a GPU is waited for.

    Returns:
        name -> median seconds.
    """
    wait = _synchronize if device != "cpu" else time.perf_counter
    seconds: dict[_Name, list[float]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            wait()
            started = time.perf_counter()
            way()
            wait()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def in_process(threads: int, measure: Callable[..., _Found], *arguments: object) -> _Found:
    """Call `measure` in a process of its own, whose libraries use so many threads.

    Where the system can (Linux), the process is also held to so many cores: some libraries cannot be told.
    """
    names = [f"{name}_NUM_THREADS" for name in _THREADS]
    former = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))  # read when the new process loads its libraries
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), initializer=_hold, initargs=(threads,)) as pool:
            return pool.submit(measure, *arguments).result()
    finally:
        for name, value in former.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def peak_bytes() -> int:
    """Return the largest resident size that this process has had since it loaded its program; 0: not told here."""
    status = Path("/proc/self/status")
    if status.is_file():  # what the system's call tells is no less than the parent's size
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _synchronize() -> None:
    import torch

    torch.cuda.synchronize()


def _hold(cores: int) -> None:
    """Hold this process to some cores, the last ones: the first is where the system works too."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cores:])
