"""Every loader of avse with a small valid file to begin from; `LOADERS` has one line for each."""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

_spec = importlib.util.spec_from_file_location("index_kit", Path(__file__).parent.parent / "index" / "conftest.py")
assert _spec and _spec.loader
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ColourEncoder = _module.ColourEncoder
Family = tuple[type[Exception], ...]


class Fuzzed(NamedTuple):
    """A valid file, how it is read, and what may be said of it."""

    path: Path | None
    """Where the mutated bytes are written before each load; None: `load` takes them."""
    load: Callable[..., object]
    kind: str = "bytes"
    seed: bytes | None = None
    """What is mutated, where that is not the file itself."""
    wrap: Callable[[bytes], bytes] = bytes
    """From what is mutated to the file's content: checksums made right, as one who means harm would."""
    names: tuple[str, ...] | None = None
    family: Family = (ValueError, OSError)


class Loader(NamedTuple):
    """A line of the table: how it is built, and the milliseconds of a load, by which time is shared out."""

    build: Callable[[Path, Any], Fuzzed]
    ms: float


LOADERS: dict[str, Loader] = {}
Build = Callable[[Path, Any], Fuzzed]


def loader(name: str, ms: float = 2.0) -> Callable[[Build], Build]:
    def keep(build: Build) -> Build:
        LOADERS[name] = Loader(build, ms)
        return build

    return keep


def picture(path: Path, shade: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(shade).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def write_json(path: Path, said: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(said), "utf-8")
    return path


# Data sets.
def _dataset(place: Path) -> Callable[[], object]:
    from avse.data import load_dataset

    def load() -> object:
        data = load_dataset(place, split="all")
        data.fingerprint(), data.summary()
        real = data.root.resolve()
        assert all(path.resolve().is_relative_to(real) for path in data.image_paths)
        return data

    return load


def _pictures(place: Path) -> None:
    for number, name in enumerate(["a.png", "b.png", "images/c.png", "val2014/d.png"]):
        picture(place / name, number)


@loader("captions.jsonl")
def _captions_jsonl(place: Path, _: Any) -> Fuzzed:
    _pictures(place)
    lines = [
        {"image": n, "captions": [f"a {n}", "ü"], "split": s, "year": 2019}
        for n, s in (("a.png", "train"), ("b.png", "test"))
    ]
    (place / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return Fuzzed(place / "captions.jsonl", _dataset(place), "jsonl")


@loader("captions.csv")
def _captions_csv(place: Path, _: Any) -> Fuzzed:
    _pictures(place)
    (place / "captions.csv").write_text('image,caption,split,year\na.png,"a, b",train,1\nb.png,"c ""d""",test,2\n')
    return Fuzzed(place / "captions.csv", _dataset(place))


@loader("dataset_x.json (Karpathy)")
def _karpathy(place: Path, _: Any) -> Fuzzed:
    _pictures(place)
    images = [
        {"filename": "d.png", "filepath": "val2014", "split": "test", "imgid": 1, "cocoid": 2, "sentids": [1, 2]},
        {"filename": "a.png", "split": "restval", "imgid": 2, "cocoid": 3, "sentids": [3, 4]},
    ]
    said = {"images": [{**image, "sentences": [{"raw": "a"}, {"raw": "b"}]} for image in images], "dataset": "x"}
    return Fuzzed(write_json(place / "dataset_x.json", said), _dataset(place), "json")


@loader("captions_val2014.json (COCO)")
def _coco(place: Path, _: Any) -> Fuzzed:
    _pictures(place)
    images = [{"id": 1, "file_name": "d.png"}, {"id": 2, "file_name": "a.png"}]
    notes = [{"id": i, "image_id": 1 + i % 2, "caption": f"text {i}"} for i in range(4)]
    path = write_json(place / "captions_val2014.json", {"images": images, "annotations": notes})
    return Fuzzed(path, _dataset(place), "json")


def _research(place: Path) -> None:
    _pictures(place)
    write_json(place / "id_mapping.json", {"1": "a.png", "2": "b.png", "3": "images/c.png"})
    (place / "test_ids.txt").write_text("1\n2\n3\n")
    (place / "test_caps.txt").write_text("".join(f"text {n}\n" for n in range(6)))


for _name in ("id_mapping.json", "test_ids.txt", "test_caps.txt"):

    @loader(f"{_name} (research)")
    def _research_file(place: Path, _: Any, name: str = _name) -> Fuzzed:
        _research(place)
        names = ("id_mapping.json", "test_ids.txt", "test_caps.txt", place.name)
        return Fuzzed(place / name, _dataset(place), "json" if name.endswith("json") else "bytes", names=names)


@loader("test_ims.npy (features)")
def _regions(place: Path, _: Any) -> Fuzzed:
    from avse.data import load_dataset

    place.mkdir(parents=True)
    np.save(place / "test_ims.npy", np.random.default_rng(0).standard_normal((4, 3, 5)).astype(np.float32))
    (place / "test_caps.txt").write_text("".join(f"text {n}\n" for n in range(8)))

    def load() -> object:
        data = load_dataset(place, split="test")
        assert data.features is not None
        return np.isfinite(data.features.open()[data.features.rows]).all()

    return Fuzzed(place / "test_ims.npy", load, "npy")


def _folder_of(kind: str) -> Callable[[Path, Any], Fuzzed]:
    def build(place: Path, _: Any) -> Fuzzed:
        _pictures(place)
        rows = [
            {"file_name": "a.png", "text": "one", "split": "train"},
            {"file_name": "b.png", "text": "two", "split": "test"},
        ]
        path = place / f"metadata.{kind}"
        if kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif kind == "csv":
            with open(path, "w", newline="") as stream:
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
        else:
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return Fuzzed(path, _dataset(place), "jsonl" if kind == "jsonl" else "bytes", names=(path.name, place.name))

    return build


for _kind in ("jsonl", "csv", "parquet"):
    loader(f"metadata.{_kind} (image folder)", ms=60)(_folder_of(_kind))


# Pictures.
for _format in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "TGA", "PPM", "JPEG2000", "AVIF"):

    @loader(f"picture {_format}", ms=1)
    def _image(place: Path, _: Any, form: str = _format) -> Fuzzed:
        from avse.images import check_image, read_image
        from avse.index.pictures import picture_payload

        place.mkdir(parents=True)
        path, stream = place / "picture", io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        more: dict[str, Any] = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "AVIF") else {}
        Image.fromarray(pixels).save(stream, form, **more)
        path.write_bytes(stream.getvalue())

        def load() -> object:
            check_image(path)
            picture_payload("picture", path)
            return read_image(path, draft=(8, 8))

        return Fuzzed(path, load)


# Settings.
@loader("recipe", ms=6)
def _recipe(place: Path, _: Any) -> Fuzzed:
    from avse.config import load_recipe, to_yaml

    place.mkdir(parents=True)
    (place / "recipe.yaml").write_text(to_yaml(load_recipe("demo")))
    return Fuzzed(place / "recipe.yaml", lambda: load_recipe(place / "recipe.yaml"), "yaml", names=())


@loader("--set", ms=3)
def _override(place: Path, _: Any) -> Fuzzed:
    from avse.config import change, load_recipe

    recipe = load_recipe("demo")
    return Fuzzed(None, lambda data: change(recipe, [data.decode("utf-8", "replace")]), seed=b"train.lr=1e-4", names=())


# Models and trainings.
def tiny_model(request: Any) -> Path:
    """A saved model of the tiny ViT and BERT with a calibration, made once a session."""
    from avse import AVSE
    from avse.calibration import Calibration, Side
    from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig

    vit, bert = (request.getfixturevalue(name) for name in ("tiny_vit_folder", "tiny_bert_folder"))
    folder = Path(vit).parent / "robust-model"
    if not folder.exists():
        images, texts = ImageEncoderConfig(source=str(vit)), TextEncoderConfig(source=str(bert))
        model = AVSE(
            ModelConfig(image_encoder=images, text_encoder=texts, embed_dim=16, block_width=8, num_views=2)
        ).eval()
        side = Side((8, 16), (0.1, 0.2), 1.0, 0.0, 20, 0.5)
        model.calibration = Calibration(side, side)
        model.save_pretrained(folder)
    return folder


def _model_file(name: str) -> Build:
    def build(place: Path, request: Any) -> Fuzzed:
        from avse import files
        from avse.start import open_model

        shutil.copytree(tiny_model(request), place)

        def load() -> object:
            if name != files.MANIFEST:  # one who changes a file changes its digest, too
                (place / files.MANIFEST).unlink(missing_ok=True)
                files.write_manifest(place)
            return open_model(place).calibration

        kind = "json" if name.endswith(".json") else "bytes"
        names = (place.name, Path(name).name)
        if name.endswith(".safetensors"):
            raw = (place / name).read_bytes()
            size = int.from_bytes(raw[:8], "little")

            def wrap(header: bytes) -> bytes:
                return len(header).to_bytes(8, "little") + header + raw[8 + size :]

            return Fuzzed(place / name, load, "json", raw[8 : 8 + size], wrap, names)
        return Fuzzed(place / name, load, kind, names=names)

    return build


for _name in (
    *("config.json", "calibration.json", "manifest.json", "model.safetensors", "image_encoder/encoder.json"),
    *("image_encoder/config.json", "text_encoder/encoder.json", "text_encoder/config.json"),
    *("text_encoder/tokenizer.json", "text_encoder/tokenizer_config.json"),
):
    loader(f"model: {_name}", ms=60)(_model_file(_name))


def _pair_file(name: str) -> Build:
    def build(place: Path, request: Any) -> Fuzzed:
        from avse.start import open_model

        shutil.copytree(request.getfixturevalue("pair_folders")["clip"], place)
        return Fuzzed(place / name, lambda: open_model(place), "json", names=(place.name, name))

    return build


for _name in ("config.json", "preprocessor_config.json", "tokenizer_config.json"):
    loader(f"CLIP folder: {_name}", ms=80)(_pair_file(_name))


@loader("model: vocabulary.json (BiGRU)", ms=10)
def _vocabulary(place: Path, _: Any) -> Fuzzed:
    from avse.config import TextEncoderConfig
    from avse.encoders import TextEncoder, build_text_encoder

    place.mkdir(parents=True)
    build_text_encoder(TextEncoderConfig(source="bigru", min_count=1, vectors=None), ["a dog", "a cat"]).save(place)
    path = place / "vocabulary.json"
    return Fuzzed(path, lambda: TextEncoder.from_saved(place).tokenize(["a dog"]), "json", names=(place.name,))


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


@loader("official .pth", ms=4)
def _official(place: Path, _: Any) -> Fuzzed:
    import torch

    from avse.official import read_official

    place.mkdir(parents=True)
    options = argparse.Namespace(embed_size=8, block_dim=[4], img_res=32)
    weights = {"img_enc.fc.weight": torch.ones(2, 2), "txt_enc.fc.bias": torch.zeros(2)}
    torch.save({"model": weights, "opt": options, "epoch": 1, "best_rsum": 2.5}, place / "best.pth")
    return Fuzzed(place / "best.pth", lambda: read_official(place / "best.pth"), "zip")


@loader("rankings.npz", ms=4)
def _rankings(place: Path, _: Any) -> Fuzzed:
    from avse.rankings import load_rankings

    path = _write_rankings(place, "npz")
    return Fuzzed(path, lambda: load_rankings(path), "zip")


@loader("rankings.npz: header", ms=4)
def _rankings_header(place: Path, _: Any) -> Fuzzed:
    from avse.rankings import compare, load_rankings

    path = _write_rankings(place, "npz")
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

    path = _write_rankings(place, "parquet")
    return Fuzzed(path, lambda: load_rankings(path))


def _write_rankings(place: Path, suffix: str) -> Path:
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


# Archives.
def _tar(place: Path, members: dict[str, bytes]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place / "x-000.tar", "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return place / "x-000.tar"


def _shards(place: Path) -> Callable[[], object]:
    from avse.data.shards import PairShards

    def load() -> object:
        (place / ".avse-shards.json").unlink(missing_ok=True)
        found = PairShards.open(place)
        return list(found.stream(seed=0, epoch=0)), found.fingerprint(), found.skipped

    return load


@loader("shard .tar", ms=3)
def _shard(place: Path, _: Any) -> Fuzzed:
    data = picture(place / "a.png")
    members = {
        "a.png": data,
        "a.txt": b"one",
        "b.png": data,
        "b.json": b'{"captions": ["two"]}',
        "c.png": data,
        "c.txt": b"three",
    }
    return Fuzzed(_tar(place, members), _shards(place))


@loader("shard .tar: caption", ms=3)
def _shard_json(place: Path, _: Any) -> Fuzzed:
    data = picture(place / "a.png")
    path = _tar(place, {"a.png": data, "a.txt": b"one"})

    def wrap(said: bytes) -> bytes:
        return _tar(place, {"a.png": data, "a.txt": b"one", "b.png": data, "b.json": said}).read_bytes()

    return Fuzzed(path, _shards(place), "json", b'{"captions": ["two", "three"], "caption": "x"}', wrap)


@loader(".avse-shards.json", ms=2)
def _counts(place: Path, _: Any) -> Fuzzed:
    from avse.data.shards import PairShards

    data = picture(place / "a.png")
    path = _tar(place, {"a.png": data, "a.txt": b"one"})
    PairShards.open(place)
    return Fuzzed(
        place / ".avse-shards.json", lambda: PairShards.open(place).summary(), "json", names=(place.name, path.name)
    )


@loader("shards.json", ms=2)
def _info(place: Path, _: Any) -> Fuzzed:
    from avse.data.shards import PairShards

    data = picture(place / "a.png")
    path = _tar(place, {"a.png": data, "a.txt": b"one"})
    said = {
        "shards": [{"name": path.name, "count": 1, "bytes": path.stat().st_size, "sha256": "0" * 64}],
        "counts": {"pairs": 1},
    }
    return Fuzzed(
        write_json(place / "shards.json", said),
        lambda: PairShards.open(place).summary(),
        "json",
        names=(place.name, path.name),
    )


@loader("Debian package", ms=25)
def _debian(place: Path, _: Any) -> Fuzzed:
    from avse.data.debian import unpack_package

    tree = place / "tree"
    write_json(tree / "usr/share/x.json", {"a": 1})
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    subprocess.run(["dpkg-deb", "-Znone", "-b", str(tree), str(place / "x_1.deb")], check=True, capture_output=True)

    def load() -> object:
        shutil.rmtree(place / "out", ignore_errors=True)
        (place / "out").mkdir()
        return unpack_package(place / "x_1.deb", place / "out")

    return Fuzzed(place / "x_1.deb", load)


@loader("SVG of the clip art", ms=0.5)
def _svg(place: Path, _: Any) -> Fuzzed:
    from avse.data.clipmeta import read_metadata, texts_of

    svg = (
        b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
        b' xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><rdf:RDF><cc:Work>'
        b"<dc:title>A dog</dc:title><dc:subject><rdf:Bag><rdf:li>dog</rdf:li></rdf:Bag></dc:subject><dc:description>x y"
        b'</dc:description><cc:license rdf:resource="http://web.resource.org/cc/PublicDomain"/></cc:Work></rdf:RDF></metadata></svg>'
    )

    def load(data: bytes) -> object:
        from collections import Counter

        meta = read_metadata(data)
        return texts_of([meta], Counter(meta.tags))

    return Fuzzed(None, load, seed=svg, names=())
