"""Measurements of speed: each module measures one thing and returns rows (dicts); `avse bench` prints them.

What they share is here: the machine's line, and ways that are timed in turns. Knows no printing and no arguments.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

_Name = TypeVar("_Name")


def machine() -> dict[str, Any]:
    """Return what a figure of speed stands with: processor, cores, versions, threads, date (UTC)."""
    import torch

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def interleaved(ways: Mapping[_Name, Callable[[], object]], runs: int) -> dict[_Name, float]:
    """Time several ways in turns, so that a slow moment of the machine hits all of them.

    Args:
        ways: name -> what to run.
        runs: timed turns; one turn before them is not counted.

    Returns:
        name -> median seconds.
    """
    seconds: dict[_Name, list[float]] = {name: [] for name in ways}
    for turn in range(runs + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _processor() -> str:
    """Return the processor's name as Linux knows it, else what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text("utf-8", "replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
