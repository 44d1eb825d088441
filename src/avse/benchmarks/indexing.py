"""How fast a folder of pictures becomes an index, against the CPU seconds of each stage alone; memory for n and 2n.

Makes its own pictures where none are given. Each measurement has a process of its own. Knows no store from inside.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from avse.benchmarks import in_process, peak_bytes
from avse.images import list_images
from avse.index.contract import Skipped
from avse.index.pictures import Picture

STAGES = ("decode", "encode", "head", "store")
SMALL, LARGE = (500, 375), (4000, 3000)
"""(width, height) in pixels of what is made."""
_BATCH = 32


@dataclass(frozen=True)
class Sizes:
    """What is indexed."""

    small: int = 2000
    """Pictures of 500 x 375 pixels, 46 KB."""
    large: int = 48
    """Pictures of 4,000 x 3,000 pixels, 2.8 MB; 0: none."""
    sample: int = 256
    """Pictures of which the stages are measured alone."""
    runs: int = 3
    """Turns, of which medians are taken."""


def measure_indexing(
    sizes: Sizes | None = None, *, folder: str | Path | None = None, model: str | Path | None = None, threads: int = 2
) -> Iterator[dict[str, Any]]:
    """Index pictures and measure each stage alone, in turns.

    Args:
        sizes: how many pictures of each kind.
        folder: one's own pictures in their place.
        model: a saved model; by default EfficientNet-Lite0 with heads of random weights.
        threads: cores that indexing may use; a stage alone has one.

    Yields:
        For each kind of pictures a row `measure: stage` a stage (cpu_ms a picture), and `measure: index`: n, seconds,
        per_second, sum_ms (CPU of all stages a picture), of_sum (n a second against n / sum), of_cores (the same
        against all cores), peak_mib of the process, readers_mib of those that read files for it, half_peak_mib of half
        of the pictures.

    Raises:
        ValueError: fewer than two pictures.
        RuntimeError: pictures were not indexed.
    """
    sizes = sizes or Sizes()
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        source = str(model or random_heads(work / "model"))
        if folder is not None:
            yield from _measure("own", Path(folder), source, sizes, threads)
            return
        for (width, height), count in ((SMALL, sizes.small), (LARGE, sizes.large)):
            if count:
                make_pictures(work / f"{width}", count, (width, height), threads)
                yield from _measure(f"{width} x {height} px", work / f"{width}", source, sizes, threads)


def make_pictures(folder: Path, count: int, size: tuple[int, int], threads: int = 1) -> None:
    """Write so many JPEGs of (width, height): noise of all scales, finer ones weaker, which packs like a photograph.

    The same number gives the same picture.
    """
    folder.mkdir(parents=True)

    def make(number: int) -> None:
        noise_picture(np.random.default_rng([number, *size]), *size).save(folder / f"{number:06}.jpg", quality=88)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(make, range(count)))


def noise_picture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """Make a picture of noise at every scale, so that it compresses like a photograph."""
    image, side = None, 2
    while side < 2 * width:
        shape = max(2, min(height, round(side * height / width))), min(side, width), 3
        layer = Image.fromarray(random.integers(0, 256, shape, np.uint8)).resize((width, height))
        image = layer if image is None else Image.blend(image, layer, 0.4 * 0.85 ** np.log2(side))
        side *= 2
    assert image is not None
    return image


def random_heads(folder: Path) -> Path:
    """Save a model of EfficientNet-Lite0 and BiGRU with heads of random weights, and return its folder."""
    from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
    from avse.model import AVSE

    encoders = ImageEncoderConfig(source="efficientnet-lite0"), TextEncoderConfig(source="bigru", vectors=None)
    config = ModelConfig(image_encoder=encoders[0], text_encoder=encoders[1], embed_dim=512, block_width=512)
    return AVSE(config, captions=["a picture"]).save_pretrained(folder)


def _measure(name: str, folder: Path, model: str, sizes: Sizes, threads: int) -> Iterator[dict[str, Any]]:
    """Measure pictures of one kind: stages and the whole in turns, then half of the pictures for its memory."""
    if (n := len(list_images(folder))) < 2:
        raise ValueError(f"{folder}: {n} pictures, at least 2 are wanted")
    stages: list[dict[str, float]] = []
    whole: list[dict[str, float]] = []
    for _ in range(sizes.runs):
        stages.append(in_process(1, _stages, folder, model, sizes.sample))
        whole.append(in_process(threads, _index, folder, n, model))
    half = in_process(threads, _index, folder, n // 2, model)
    cost = {stage: statistics.median(found[stage] for found in stages) for stage in STAGES}
    for stage in STAGES:
        yield {"measure": "stage", "pictures": name, "stage": stage, "cpu_ms": round(1e3 * cost[stage], 3)}
    seconds = statistics.median(found["seconds"] for found in whole)
    cpu = statistics.median(found["cpu"] for found in whole)
    ratio = n * sum(cost.values()) / seconds
    yield {
        "measure": "index",
        "pictures": name,
        "n": n,
        "threads": threads,
        "seconds": round(seconds, 2),
        "per_second": round(n / seconds, 1),
        "sum_ms": round(1e3 * sum(cost.values()), 3),
        "cpu_ms": round(1e3 * cpu / n, 3),
        "of_sum": round(ratio, 3),
        "of_cores": round(ratio / threads, 3),
        "peak_mib": round(max(found["peak"] for found in whole) / 2**20),
        "readers_mib": round(max(found["readers"] for found in whole) / 2**20),
        "half_peak_mib": round(half["peak"] / 2**20),
    }


def _stages(folder: Path, model: str, sample: int) -> dict[str, float]:
    """CPU seconds a picture of each stage alone, on the first pictures of a folder."""
    from avse.allocator import keep_freed_memory

    keep_freed_memory()
    import torch

    from avse.index import Index
    from avse.index.decoder import read_picture
    from avse.start import open_model

    encoder = open_model(model)
    spec, paths = encoder.pixels, list_images(folder)[:sample]
    if spec is None:
        raise ValueError(f"{model} reads no pictures: its encoder takes features made beforehand")
    read, cpu = [read_picture(path.name, path, spec) for path in paths[:2]], {}  # what loads at the first call
    started = time.process_time()
    read = [read_picture(path.name, path, spec) for path in paths]
    cpu["decode"] = time.process_time() - started
    batches = torch.split(torch.from_numpy(np.stack([pixels for pixels, _ in read])), _BATCH)
    with torch.inference_mode():
        encoder.embed_pixels(batches[0])
        started = time.process_time()
        grids = [encoder.image_encoder(batch) for batch in batches]
        cpu["encode"] = time.process_time() - started
        started = time.process_time()
        blocks = torch.cat([encoder.embed_features(grid) for grid in grids]).numpy()
        cpu["head"] = time.process_time() - started
    del grids, batches
    with TemporaryDirectory() as temporary, Index.create(Path(temporary) / "i.avse", encoder) as index:
        started = time.process_time()
        for at in range(0, len(paths), _BATCH):
            part = slice(at, at + _BATCH)
            index.add_embeddings([path.name for path in paths[part]], blocks[part], [kept for _, kept in read[part]])
        cpu["store"] = time.process_time() - started
    return {stage: seconds / len(paths) for stage, seconds in cpu.items()}


def _index(folder: Path, n: int, model: str) -> dict[str, float]:
    """Index the first n pictures of a folder as `avse index` does: seconds, CPU seconds, peak bytes."""
    from avse.allocator import keep_freed_memory, let_threads_sleep

    keep_freed_memory()
    let_threads_sleep()
    from avse.index import Index
    from avse.index.feed import embed_files
    from avse.start import open_model

    encoder, readers = open_model(model), 0

    def watched(todo: Iterable[tuple[str, Path]]) -> Iterator[list[Picture | Skipped]]:
        nonlocal readers
        for number, batch in enumerate(embed_files(encoder, todo, batch_size=_BATCH)):
            if number % 10 == 1:
                readers = max(readers, _children_bytes())
            yield batch

    with TemporaryDirectory() as temporary, Index.create(Path(temporary) / "i.avse", encoder) as index:
        started, cpu = time.perf_counter(), _cpu_seconds()
        report = index.add_images(list_images(folder)[:n], root=folder, progress=False, embed=watched)
        seconds, cpu = time.perf_counter() - started, _cpu_seconds() - cpu
    if report.added != n:
        raise RuntimeError(f"{report.added} of {n} pictures were indexed, {len(report.skipped)} set aside")
    return {"seconds": seconds, "cpu": cpu, "peak": peak_bytes(), "readers": readers}


def _cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _children_bytes() -> int:
    """Return what this process's children hold in memory now; 0 where the system does not tell."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            facts = dict(line.split(":", 1) for line in path.read_text("utf-8", "replace").splitlines() if ":" in line)
            if int(facts["PPid"]) == os.getpid():
                total += 1024 * int(facts.get("VmRSS", "0").split()[0])
    return total
