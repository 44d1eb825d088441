"""Writing shards: bytes as they were, the other splits as a data set, kill -9, refusals, and webdataset as reader."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from avse.data import load_dataset
from avse.data.layouts import find_layout, load_splits
from avse.data.sharding import write_shards
from avse.data.shards import PairShards, ShardError
from avse.files import sha256


def paint(path: Path, number: int) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path.read_bytes()


def source(folder: Path, train: int, suffix: str = "jpg") -> Path:
    lines = []
    for number in range(train + 4):
        split = "train" if number < train else ("val", "test")[number % 2]
        name = f"deep/{split}/{number} ü.{suffix}"
        paint(folder / "images" / name, number)
        captions = [f"caption {k} of {number}" for k in range(1 + number % 3)]
        lines.append({"image": name, "captions": captions, "split": split, "title": f"t{number}"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write(data: Path, out: Path, count: int = 5, **options):
    return write_shards(load_splits(find_layout(data)), out, samples_per_shard=count, progress=False, **options)


def stored(out: Path) -> dict[str, str]:
    return {path.relative_to(out).as_posix(): sha256(path) for path in sorted(out.rglob("*")) if path.is_file()}


def test_webdataset_reads_what_was_written_and_so_do_we(tmp_path):
    data, out = source(tmp_path / "data", 23), tmp_path / "out"
    counts = write(data, out)
    assert counts["splits"] == {"train": 23, "val": 2, "test": 2} and counts["shards"] == 5
    train = load_dataset(data, split="train")
    wanted = {
        image_id: (train.image_paths[i].read_bytes(), train.captions_of(i))
        for i, image_id in enumerate(train.image_ids)
    }
    read = PairShards.open(out)
    assert read.num_images == 23 and read.counts == (5, 5, 5, 5, 3) and not (out / ".avse-shards.json").exists()
    found, keys = {}, []
    for said in webdataset.WebDataset([str(path) for path in read.paths], shardshuffle=False, empty_check=False):
        text = json.loads(said["json"])
        found[text["id"]] = (said["jpg"], tuple(text["captions"]))
        keys.append(said["__key__"])
    assert found == wanted and keys == [f"{number:09d}" for number in range(23)]
    ours = sorted((sample.image, sample.captions) for sample in read.read(seed=0, epoch=0))
    assert ours == sorted(wanted.values())
    assert keys != [f"{i:09d}" for i, image_id in enumerate(train.image_ids) if image_id == list(found)[i]]  # mixed
    assert read.fingerprint() == PairShards.open(out).fingerprint()
    for said in json.loads((out / "shards.json").read_text())["shards"]:
        assert sha256(out / said["name"]) == said["sha256"]


def test_the_other_splits_are_a_data_set_with_the_same_ids(tmp_path):
    data, out = source(tmp_path / "data", 6), tmp_path / "out"
    write(data, out)
    for split in ("val", "test"):
        old, new = load_dataset(data, split=split), load_dataset(out, split=split)
        assert old.fingerprint() == new.fingerprint() and old.records == new.records
        assert [path.read_bytes() for path in old.image_paths] == [path.read_bytes() for path in new.image_paths]
    with pytest.raises(ValueError, match=r"no split 'train'.*stream them by data\.shards="):
        load_dataset(out, split="train")


def test_layouts_of_others_become_shards(tmp_path, karpathy):
    out = tmp_path / "out"
    counts = write(karpathy(), out)
    assert counts["splits"] == {"train": 3, "val": 1, "test": 1}
    assert {len(sample.captions) for sample in PairShards.open(out).read(seed=0, epoch=0)} == {5}
    assert load_dataset(out, split="test").image_ids == load_dataset(karpathy(), split="test").image_ids
    assert load_dataset(out, split="test").num_pairs == 6


def test_other_formats_become_png_of_the_same_pixels(tmp_path):
    data, out = source(tmp_path / "data", 4, "bmp"), tmp_path / "out"
    write(data, out)
    train = load_dataset(data, split="train")
    wanted = {train.captions_of(i): Image.open(path).tobytes() for i, path in enumerate(train.image_paths)}
    found = {s.captions: Image.open(io.BytesIO(s.image)) for s in PairShards.open(out).read(seed=0, epoch=0)}
    assert {image.format for image in found.values()} == {"PNG"}
    assert {captions: image.tobytes() for captions, image in found.items()} == wanted
    assert all(path.suffix == ".bmp" for path in load_dataset(out, split="val").image_paths)


def test_pictures_that_cannot_be_read_are_listed(tmp_path):
    data, out = source(tmp_path / "data", 6), tmp_path / "out"
    train, val = load_dataset(data, split="train"), load_dataset(data, split="val")
    whole = train.image_paths[0].read_bytes()
    train.image_paths[0].write_bytes(whole[: len(whole) // 2])
    train.image_paths[1].unlink()
    val.image_paths[0].write_bytes(b"no picture")
    counts = write(data, out, 1)
    assert counts["splits"] == {"train": 4, "test": 2, "val": 1} and sum(counts["skipped"].values()) == 3
    named = {said["name"]: said["reason"] for said in json.loads((out / "skipped.json").read_text())}
    assert set(named) == {train.image_ids[0], train.image_ids[1], val.image_ids[0]}
    assert named[train.image_ids[1]].startswith("missing") and named[train.image_ids[0]].startswith("unreadable")
    assert PairShards.open(out).num_images == 4 and write(data, out, 1) == counts
    for path in train.image_paths:
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no picture of train can be read"):
        write(data, tmp_path / "none")


def test_the_same_again_writes_nothing_and_a_lost_shard_alone(tmp_path):
    data, out = source(tmp_path / "data", 23), tmp_path / "out"
    counts, before = write(data, out), stored(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert write(data, out) == counts and stored(out) == before
    (out / "train-000002.tar").unlink()
    with pytest.raises(ShardError, match=r"train-000002\.tar: expected 20,480 bytes, found no such file"):
        PairShards.open(out)
    assert write(data, out) == counts and stored(out) == before
    assert {path.name for path in out.glob("*.tar") if path.stat().st_mtime_ns != times[path]} == {"train-000002.tar"}
    (out / "train-000001.tar").write_bytes(b"short")
    with pytest.raises(ShardError, match=r"train-000001\.tar: expected .* found 5 bytes"):
        PairShards.open(out)


def test_refusals_name_the_way_out(tmp_path, regions):
    data, out = source(tmp_path / "data", 6), tmp_path / "out"
    write(data, out)
    with pytest.raises(FileExistsError, match="shards of other samples_per_shard: name another --out, or .* --force"):
        write(data, out, 3)
    assert write(data, out, 3, force=True)["shards"] == 2 and len(list(out.glob("*.tar"))) == 2
    (data / "captions.jsonl").write_text((data / "captions.jsonl").read_text().replace("caption 0 of 3", "other"))
    with pytest.raises(FileExistsError, match="shards of other fingerprints"):
        write(data, out, 3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("work of years")
    for force in (False, True):  # never deleted
        with pytest.raises(FileExistsError, match="holds something else than shards"):
            write(data, tmp_path / "mine", force=force)
        with pytest.raises(ValueError, match="holds the pictures that are to be written"):
            write(data, tmp_path, force=force)
    with pytest.raises(ValueError, match="features made beforehand"):
        write(regions(), tmp_path / "r")
    with pytest.raises(ValueError, match=r"no picture in split 'train'.* there is val \(2 images\), test"):
        write_shards({s: p for s, p in load_splits(find_layout(data)).items() if s != "train"}, tmp_path / "r")
    with pytest.raises(ValueError, match="0 samples a shard"):
        write(data, tmp_path / "r", 0)
    assert not (tmp_path / "r").exists()


WRITER = """
import sys
from avse.data.layouts import find_layout, load_splits
from avse.data.sharding import write_shards
splits = load_splits(find_layout(sys.argv[1]))
print("ready", flush=True)
write_shards(splits, sys.argv[2], samples_per_shard=5, progress=False)
"""


def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path):
    data, whole, out = source(tmp_path / "data", 240), tmp_path / "whole", tmp_path / "out"
    write(data, whole)
    pick, kills, finished = random.Random(0), 0, dict[Path, int]()
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, data, out], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        wanted = len(list(out.glob("*.tar"))) + pick.randrange(0, 12)
        while process.poll() is None and len(list(out.glob("*.tar"))) < wanted:
            time.sleep(0.001)
        time.sleep(pick.uniform(0, 0.01))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
        for path, changed in finished.items():
            assert path.stat().st_mtime_ns == changed  # not written again
        info = out / "shards.json"
        listed = json.loads(info.read_text())["shards"] if info.exists() else []
        finished = {out / said["name"]: (out / said["name"]).stat().st_mtime_ns for said in listed}
        for path in out.glob("*.tar"):
            assert path.read_bytes() == (whole / path.name).read_bytes()  # whole or not there
        if kills and info.exists() and "counts" not in json.loads(info.read_text()):
            with pytest.raises(ShardError, match="an interrupted writing: the same avse data shards goes on"):
                PairShards.open(out)
    assert kills >= 2 and finished
    write(data, out)
    assert stored(out) == stored(whole)  # and nothing that was begun is left over
    shutil.rmtree(data)
    assert PairShards.open(out).num_images == 240
