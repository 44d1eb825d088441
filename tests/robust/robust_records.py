"""The loaders of settings and of what trainings and evaluations leave: states, records, rankings, caches."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from robust_loaders import Build, Fuzzed, loader, write_json


@loader("recipe", ms=6)
def _recipe(place: Path, _: Any) -> Fuzzed:
    from avse.config import load_recipe, to_yaml

    place.mkdir(parents=True)
    (place / "recipe.yaml").write_text(to_yaml(load_recipe("demo")))
    return Fuzzed(place / "recipe.yaml", lambda: load_recipe(place / "recipe.yaml"), "yaml")


@loader("--set", ms=3)
def _override(place: Path, _: Any) -> Fuzzed:
    from avse.config import change, load_recipe

    recipe = load_recipe("demo")
    return Fuzzed(None, lambda data: change(recipe, [data.decode("utf-8", "replace")]), seed=b"train.lr=1e-4", names=())


@loader("checkpoint: state.pt", ms=3)
def _state(place: Path, _: Any) -> Fuzzed:
    import torch

    from avse import checkpoint

    place.mkdir(parents=True)
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    checkpoint.save_state(place / "state.pt", {"optimizer": optimizer.state_dict(), "ranks": [{"random": {}}]})
    return Fuzzed(place / "state.pt", lambda: checkpoint.load_state(place / "state.pt"), "zip")


@loader("checkpoint: progress.json", ms=2)
def _progress(place: Path, _: Any) -> Fuzzed:
    from avse.trainer.state import Progress, read_progress

    place.mkdir(parents=True)
    progress = Progress(step=3, sums={"loss": 1.0}, counts={"steps": 2}, history=[{"epoch": 0, "val": {"rsum": 1.0}}])
    (place / "progress.json").write_text(progress.to_json())
    return Fuzzed(place / "progress.json", lambda: read_progress(place / "progress.json"), "json")


def _run_file(name: str) -> Build:
    def build(place: Path, _: Any) -> Fuzzed:
        from avse.cli.runs import flat, row_of
        from avse.trainer.record import read_run

        entry = {"epoch": 0, "val": {"rsum": 100.0, "i2t": {"r1": 1.0}, "t2i": {"r1": 2.0}}, "loss": 1.0}
        run = {
            "status": "finished",
            "best_epoch": 0,
            "identity": {"data": "x", "config": {"lr": 1}},
            "seconds": {"train": 1},
        }
        said = {"run.json": run, "history.json": [entry], "result.json": {**run, "history": [entry]}}[name]

        def load() -> object:
            found = read_run(place)
            return row_of("x", found), flat(found["identity"])

        return Fuzzed(write_json(place / name, said), load, "json")

    return build


for _name in ("run.json", "history.json", "result.json"):
    loader(_name, ms=1)(_run_file(_name))


@loader("result.json (ablation)", ms=1)
def _result(place: Path, _: Any) -> Fuzzed:
    from avse.experiment import Measured, _read, _write
    from avse.metrics import retrieval_metrics

    place.mkdir(parents=True)
    ranks = retrieval_metrics(np.eye(3, dtype=np.float32), np.arange(3)).ranks
    _write(place, {"model": {}, "train": {}}, Measured(ranks, ranks, [], 0, {"train": 1.0}))
    return Fuzzed(place / "result.json", lambda: _read(place, {"model": {}, "train": {}}), "json")


@loader("rankings.npz", ms=4)
def _rankings(place: Path, _: Any) -> Fuzzed:
    from avse.rankings import load_rankings

    path = write_rankings(place, "npz")
    return Fuzzed(path, lambda: load_rankings(path), "zip")


@loader("rankings.npz: header", ms=4)
def _rankings_header(place: Path, _: Any) -> Fuzzed:
    from avse.rankings import compare, load_rankings

    path = write_rankings(place, "npz")
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header, whole = arrays.pop("header").tobytes(), load_rankings(path)

    def wrap(said: bytes) -> bytes:
        out = io.BytesIO()
        np.savez(out, header=np.frombuffer(said, np.uint8), **arrays)
        return out.getvalue()

    return Fuzzed(path, lambda: compare(load_rankings(path), whole, resamples=2), "json", header, wrap, names=())


@loader("rankings.parquet", ms=5)
def _rankings_parquet(place: Path, _: Any) -> Fuzzed:
    from avse.rankings import load_rankings

    path = write_rankings(place, "parquet")
    return Fuzzed(path, lambda: load_rankings(path))


def write_rankings(place: Path, suffix: str) -> Path:
    from avse.metrics import retrieval_metrics
    from avse.rankings import Rankings, save_rankings

    place.mkdir(parents=True)
    owners = np.array([0, 0, 1, 2])
    scores = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    report = retrieval_metrics(scores, owners, texts=("a", "b", "c", "d"))
    ranks = {"plain": {"plain": report.ranks, "duplicate_aware": (report.duplicate_aware or report).ranks}}
    hits = (
        np.zeros((3, 2), np.int64),
        np.zeros((3, 2), np.float32),
        np.zeros((4, 2), np.int64),
        np.zeros((4, 2), np.float32),
    )
    made = Rankings({"model": "m"}, ("x", "y", "z"), ("a", "b", "c", "d"), owners, ranks, *hits)
    return save_rankings(made, place / f"rankings.{suffix}")


@loader("feature cache: journal.txt", ms=1)
def _rowstore(place: Path, _: Any) -> Fuzzed:
    from avse.rowstore import RowStore

    store = RowStore(place, {"of": "numbers"}, 2)
    store.verify()
    store.cut()
    store.append(2, b"abcd", {})
    store.append(3, b"efgh", {3: "why"})
    lines = [line[9:] for line in (place / "journal.txt").read_bytes().splitlines()]

    def wrap(said: bytes) -> bytes:
        return b"".join(b"%08x %s\n" % (zlib.crc32(line), line) for line in said.split(b"\n"))

    return Fuzzed(
        place / "journal.txt", lambda: RowStore(place, {"of": "numbers"}, 2).verify(), "jsonl", b"\n".join(lines), wrap
    )


def _embeddings(suffix: str) -> Build:
    def build(place: Path, _: Any) -> Fuzzed:
        from avse.export.embeddings import embeddings_writer, read_embeddings
        from avse.export.tables import facts_of
        from avse.index.contract import Layout

        place.mkdir(parents=True)
        path, rows = place / f"x.{suffix}", np.random.default_rng(0).standard_normal((3, 4, 8)).astype(np.float32)
        with embeddings_writer(path, facts_of(Layout("images", 4, 2, 8), "0" * 64, "m"), {"width": "int64"}) as write:
            write(["a.png", "ü b.png", "c"], rows, [{"width": 3, "tags": ["x", 1]}, {}, {"word": "ä"}])
        return Fuzzed(path, lambda: read_embeddings(path), "zip" if suffix == "npz" else "bytes")

    return build


loader("embeddings .npz", ms=4)(_embeddings("npz"))
loader("embeddings .parquet", ms=5)(_embeddings("parquet"))


def _card(name: str) -> Build:
    def build(place: Path, _: Any) -> Fuzzed:
        from avse.config import ModelConfig
        from avse.export import card
        from avse.export.records import read_record

        recalls = {"r1": 1.0, "r5": 2.0, "r10": 3.5}
        best = {"i2t": recalls, "t2i": recalls}
        config, counts = {"epochs": 3, "lr": 0.1}, {"images": 3, "pairs": 6}
        run = {
            "fingerprint": "f" * 64, "data": {"name": "x", "train": counts, "val": counts}, "best_epoch": 1,
            "leaks": {"looked": True, "found": 1, "done": "taken out"}, "identity": {"config": config},
            "command": ["/usr/bin/avse", "train", "a b"], "versions": {"torch": "2", "platform": "x"},
            "hardware": {"processor": "p", "gpus": [{"name": "g"}]}, "seconds": {"train": 1.5},
            "best": {**best, "rsum": 13.0},
        }  # fmt: skip
        sizes = {"train": 3, "val": 3, "test": 3}
        report = {
            "fingerprint": "f" * 64, "dataset": "x", "images": sizes, "captions": sizes, "pairs": 6, "resolution": 32,
            "precision": "fp32", "seeds": [0], "systems": {"avse": {**best, "rsum": {"mean": 13.0, "ci": [1, 20]}}},
        }  # fmt: skip
        result = {"identity": {"train": config}, "best_epoch": 1, "seconds": {"train": 1.5}}
        write_json(place / "model/image_encoder/encoder.json", {"pixels": {"size": [32, 32]}})
        if name != "run.json":
            write_json(place / "report.json", report)
            write_json(place / "systems/avse-seed0/result.json", result)
        else:
            write_json(place / "run.json", run)

        def load() -> object:
            found = read_record(place / "model", "f" * 64)
            return card.model_card("x", ModelConfig(), found, card._recorded(found, place / "model"), None, False)

        return Fuzzed(place / name, load, "json")

    return build


for _name in ("run.json", "report.json", "systems/avse-seed0/result.json"):
    loader(f"model card: {_name}", ms=3)(_card(_name))
