"""The demo's steps in order: pictures, features, trainings, table, index, searches, report. What is there is reused."""

from __future__ import annotations

import logging
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avse import files
from avse.data import PairDataset, load_dataset
from avse.data.openclipart import OpenClipartUnavailable, build_openclipart
from avse.data.scenes import make_scenes
from avse.demo.report import write_report
from avse.demo.systems import SYSTEMS, recipe_for, title_of
from avse.experiment import Measured, summarise, train_and_measure
from avse.index import Index
from avse.index.pictures import picture_payload
from avse.inputs import Inputs, open_inputs, select
from avse.metrics import retrieval_metrics
from avse.model import AVSE
from avse.plots import draw_curves
from avse.sheet import Row, Tile, contact_sheet

log = logging.getLogger(__name__)

SEARCHES = {
    "openclipart": (
        "a red flower",
        "a cartoon dog",
        "a sailing ship on the sea",
        "flag with a star",
        "a person playing the guitar",
        "a bird on a branch",
        "fast sports car",
        "a cup of hot coffee",
    ),
    "scenes": (
        "a red star",
        "a small blue circle",
        "a green triangle at the top left",
        "a yellow heart",
        "a striped square",
        "a large purple ring",
        "an orange cross at the bottom right",
        "a black moon",
    ),
}


def run_demo(
    out: Path,
    data: Path,
    *,
    seeds: int = 1,
    scenes: bool = False,
    epochs: int | None = None,
    max_train_images: int = 3000,
    device: str = "cpu",
) -> dict[str, Any]:
    """Train, compare, index and search; return what report.json holds.

    Args:
        out: folder of model/, index.avse/, report.html, report.json; finished parts are reused.
        data: folder that holds or gets openclipart/ or scenes/.
        seeds: trainings of each system.
        scenes: take made scenes instead of open clip art.
        epochs: another number of epochs than the recipes'.
        max_train_images: at most so many training pictures.
        device: where the models run.
    """
    timings: dict[str, float] = {}
    with _timed(timings, "data"):
        folder = _obtain(data, scenes)
    everything = load_dataset(folder, split="all")
    parts = {split: load_dataset(folder, split=split) for split in ("train", "val", "test")}
    parts["train"] = parts["train"].first_by_hash(max_train_images)
    log.info("%s", everything.summary())
    recipe = recipe_for(folder.name, "avse", 0, epochs)
    torch.manual_seed(0)
    model = AVSE(recipe.model).to(device)
    encoders = (model.image_encoder, model.text_encoder)
    with _timed(timings, "features"):
        whole = open_inputs(model, everything, cache=out / "cache")
        splits = {name: select(whole, part) for name, part in parts.items()}
    runs: dict[str, list[Measured]] = {name: [] for name in SYSTEMS}
    with _timed(timings, "training"):
        for seed in range(seeds):
            for name in SYSTEMS:
                log.info("%s, seed %d", name, seed)
                kept = out / "model" if name == "avse" and seed == 0 else None
                result = out / "systems" / f"{name}-seed{seed}"
                runs[name].append(
                    train_and_measure(
                        recipe_for(folder.name, name, seed, epochs), encoders, splits, result, kept, device
                    )
                )
    model = AVSE.from_pretrained(out / "model").to(device)
    with _timed(timings, "index"):
        index = _index(out / "index.avse", model, whole, folder)
    with index, _timed(timings, "searches"):
        searches = SEARCHES[folder.name]
        _search(index, searches, everything, out / "searches.png")
        report = {
            **_facts(folder, splits, seeds, model, len(index)),
            **summarise(runs),
            "titles": {name: title_of(name, recipe_for(folder.name, name, 0, epochs)) for name in SYSTEMS},
            "searches": list(searches),
            "timings": {name: round(seconds, 1) for name, seconds in timings.items()},
            "peak_memory_gib": _peak_memory(),
        }
    draw_curves({name: seeds_of[0].history for name, seeds_of in runs.items()}, out / "curves.png")
    files.write_json(out / "report.json", report)
    write_report(out, report)
    return report


def _obtain(data: Path, scenes: bool) -> Path:
    """Return the folder of the pictures, built if it is not there."""
    if not scenes:
        try:
            build_openclipart(data / "openclipart")
            return data / "openclipart"
        except OpenClipartUnavailable as error:
            log.warning("%s", error)
            log.warning("made scenes take its place: the figures say nothing about real pictures")
    folder = data / "scenes"
    if not (folder / "captions.jsonl").exists():
        make_scenes(folder, count=2000, size=224)
    return folder


def _index(path: Path, model: AVSE, whole: Inputs, folder: Path) -> Index:
    """Index every picture from its cached grid; an index of this very model is reused."""
    if path.exists():
        try:
            index = Index.open(path, model=model)
            if len(index) == whole.dataset.num_images:
                return index
            index.close()
        except (ValueError, OSError) as error:
            log.info("the index is made anew: %s", error)
    index = Index.create(path, model=model, source=folder, force=True)
    for start in range(0, whole.dataset.num_images, 256):
        rows = range(start, min(start + 256, whole.dataset.num_images))
        with torch.inference_mode():
            blocks = model.embed_features(whole.images.batch(rows).to(model.device)).cpu().numpy()
        ids = [whole.dataset.image_ids[row] for row in rows]
        payloads = [_payload(whole.dataset, row) for row in rows]
        index.add_embeddings(ids, blocks, payloads)
    return index


def _payload(dataset: PairDataset, row: int) -> dict[str, Any]:
    """Return what `avse index` keeps of a picture, with its first caption and split."""
    own = picture_payload(dataset.image_ids[row], dataset.image_paths[row])
    return {**own, "title": dataset.captions_of(row)[0], "split": dataset.records[row]["split"]}


def _search(index: Index, searches: tuple[str, ...], dataset: PairDataset, out: Path) -> None:
    rows = []
    for sentence in searches:
        hits = index.search(sentence, k=6)
        tiles = [Tile(index.picture(hit), hit.payload.get("title") or hit.id, hit.score) for hit in hits]
        rows.append(Row(sentence, tiles))
    contact_sheet(rows, out, columns=6, force=True)


def _peak_memory() -> float | None:
    """Peak resident memory of this process in GiB, where the system tells."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 2)


def _facts(folder: Path, splits: dict[str, Inputs], seeds: int, model: AVSE, indexed: int) -> dict[str, Any]:
    test = splits["test"].dataset
    empty = np.zeros((test.num_images, test.num_pairs), np.float32)
    sharing = retrieval_metrics(empty, test.text_to_image, texts=test.captions)
    return {
        "dataset": folder.name,
        "data": str(folder),
        "split": "test",
        "pairs": test.num_pairs,
        "images": {split: part.dataset.num_images for split, part in splits.items()},
        "captions": {split: part.dataset.num_pairs for split, part in splits.items()},
        "indexed": indexed,
        "resolution": model.image_encoder.pixels.size[0],
        "precision": splits["test"].images.precision,
        "seeds": list(range(seeds)),
        "fingerprint": model.fingerprint,
        "shared_texts": sharing.shared_texts,
        "ceiling_r1": sharing.ceiling,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
    }


@contextmanager
def _timed(timings: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started
