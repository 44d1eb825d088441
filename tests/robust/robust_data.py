"""The loaders of data sets, pictures and archives."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from robust_loaders import Fuzzed, loader, picture, write_json


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
