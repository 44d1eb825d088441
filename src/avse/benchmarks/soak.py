"""Hours in minutes: pictures come and go, questions are asked, and memory, file handles and disk must stay flat.

Every turn new pictures replace the oldest, the folder is indexed again, sentences and pictures are searched, one entry
is deleted and comes back; every few turns the index is pruned, closed and opened.
Knows of a store what its log is called, no more.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from avse.benchmarks.indexing import noise_picture, random_heads
from avse.extras import needs
from avse.index import Index
from avse.start import open_model

KEPT, CHANGED, REOPEN = 64, 8, 5
"""Pictures in the folder, those replaced in a turn, and turns after which the index is pruned and opened anew."""
GROWTH = 0.05
"""Of memory and disk over the last two thirds of the time, by a straight line, that still counts as flat."""
LOG = 72.0
"""MiB that the embedded engine's log may take: two segments of 32, and what is about to be cut."""
_SIZE = (160, 120)


@dataclass(frozen=True)
class Turn:
    """What stood after a turn: entries, resident MiB, open handles, MiB on the disk, the engine's log apart."""

    seconds: float
    entries: int
    rss_mib: float
    handles: int
    disk_mib: float
    log_mib: float


def soak(
    seconds: float, *, turns: int | None = None, model: str | Path | None = None, store: str = "embedded"
) -> Iterator[Turn]:
    """Use an index for so long and yield what stood after each turn.

    Args:
        seconds: how long.
        turns: how many at most; None: as many as there is time for.
        model: a saved model; by default EfficientNet-Lite0 with heads of random weights.
        store: "embedded" or "memory".

    Raises:
        MissingExtraError: psutil is not installed.
        RuntimeError: an answer was wrong.
    """
    with needs("bench", "avse bench soak"):
        import psutil  # type: ignore[import-untyped]
    process, number = psutil.Process(), 0
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        (photos := work / "photos").mkdir()
        encoder = open_model(model or random_heads(work / "model"))
        index, began = Index.create(work / "soak.avse", encoder, store=store), time.monotonic()
        try:
            for _ in count() if turns is None else range(turns):
                if time.monotonic() - began >= seconds:
                    break
                number = _replace(photos, number)
                index = _turn(index, photos, reopen=number // CHANGED % REOPEN == 0)
                gc.collect()
                sizes = {True: 0.0, False: 0.0}
                for path in index.path.rglob("*"):
                    sizes["wal" in path.parts] += path.stat().st_blocks / 2048 if path.is_file() else 0
                handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
                rss = process.memory_info().rss / 2**20
                said = round(rss, 1), handles, round(sizes[False], 2), round(sizes[True], 1)
                yield Turn(round(time.monotonic() - began, 1), len(index), *said)
        finally:
            index.close()


def judge(turns: list[Turn]) -> dict[str, Any]:
    """Say of the last two thirds of the time how much grew; ``flat``: nothing did, and the log is at most `LOG`.

    Raises:
        ValueError: fewer than ten turns.
    """
    late = [turn for turn in turns if turn.seconds > turns[-1].seconds / 3]
    if len(turns) < 10 or len(late) < 3:
        raise ValueError(f"{len(turns)} turns tell nothing: 10 are wanted, so more --seconds")
    times = np.array([turn.seconds for turn in late])
    grown: dict[str, Any] = {"turns": len(turns), "seconds": turns[-1].seconds}
    for name in ("rss_mib", "disk_mib"):
        values = np.array([getattr(turn, name) for turn in late])
        slope = float(np.polyfit(times - times[0], values, 1)[0])
        grown[name] = {"first": values[0], "last": values[-1], "most": float(values.max())}
        gained = slope * float(times[-1] - times[0])
        grown[name] |= {"gained": round(gained, 3), "growth": round(gained / float(values.mean()), 4)}
    half = len(late) // 2
    counts = [max(turn.handles for turn in part) for part in (late[:half], late[half:])]
    grown["handles"] = {"first": counts[0], "last": counts[1]}
    grown["log_mib"] = {"most": max(turn.log_mib for turn in turns)}
    flat = counts[1] <= counts[0] and grown["log_mib"]["most"] <= LOG
    flat = flat and all(grown[name]["growth"] < GROWTH for name in ("rss_mib", "disk_mib"))
    return {**grown, "flat": flat, "last": asdict(turns[-1])}


def _replace(photos: Path, number: int) -> int:
    """Take the oldest pictures out and put new ones in; return the number of the next."""
    for _ in range(CHANGED if number else KEPT):
        (photos / f"{number - KEPT:06}.jpg").unlink(missing_ok=True)
        noise_picture(np.random.default_rng(number), *_SIZE).save(photos / f"{number:06}.jpg")
        number += 1
    return number


def _turn(index: Index, photos: Path, reopen: bool) -> Index:
    """Index, ask, delete; where it is time, prune, close and open."""
    index.add_images(photos, progress=False)
    files = sorted(path.name for path in photos.iterdir())
    if len(index) != len(files):
        raise RuntimeError(f"{len(index)} entries of {len(files)} pictures")
    for name in (files[0], files[-1]):
        if index.search(image=photos / name, k=1)[0].id != name:
            raise RuntimeError(f"{name} does not find itself")
    for word in ("a red car", "snow", "two dogs on a beach"):
        if len(index.search(word, k=5, where=f"width = {_SIZE[0]} and not name = {files[0]}")) != 5:
            raise RuntimeError(f"{word!r} finds fewer than 5")
    if index.delete([files[1]]) != 1:
        raise RuntimeError(f"{files[1]} was not there")
    index.add_images(photos, progress=False)
    if not reopen:
        return index
    index.prune(progress=False)
    index.close()
    return Index.open(index.path, model=index.encoder)
