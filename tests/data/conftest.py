"""Miniatures of the layouts that people have on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def picture(path: Path, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade % 256, shade // 256, 0)).save(path)


@pytest.fixture
def karpathy(tmp_path):
    """Writes a COCO of Karpathy's: val2014 and train2014, one image each of test, val, restval and two of train."""

    def write(change=lambda said: None, pictures="images"):
        root = tmp_path / "karpathy"
        root.mkdir(exist_ok=True)
        splits = ["test", "val", "restval", "train", "train"]
        images = []
        for i, split in enumerate(splits):
            folder = "train2014" if split == "train" else "val2014"
            name = f"COCO_{folder}_{i:012d}.jpg"
            sentences = [{"raw": f"image {i} caption {k} ü ", "sentid": 10 * i + k} for k in range(5 + (i == 0))]
            ids = [sentence["sentid"] for sentence in sentences]
            images.append(
                {"filepath": folder, "filename": name, "split": split, "imgid": i, "cocoid": 100 + i}
                | {"sentids": ids, "sentences": sentences}
            )
            picture(root / pictures / folder / name, i)
        said = {"images": images, "dataset": "coco"}
        change(said)
        (root / "dataset_coco.json").write_text(json.dumps(said), "utf-8")
        return root

    return write


@pytest.fixture
def research(tmp_path):
    """Writes a set of a research repository: 3, 2 and 2 images with five captions each."""

    def write(once_a="image", texts=""):
        root = tmp_path / "f30k"
        (root / texts).mkdir(parents=True, exist_ok=True)
        mapping, number = {}, 0
        for split, count in {"train": 3, "dev": 2, "test": 2}.items():
            ids = [str(number + i) for i in range(count)]
            number += count
            for i in ids:
                mapping[i] = f"{1000 + int(i)}.jpg"
                picture(root / "images" / mapping[i], int(i))
            lines = ids if once_a == "image" else [i for i in ids for _ in range(5)]
            (root / texts / f"{split}_ids.txt").write_text("\n".join(lines) + "\n")
            caps = [f"image {i} caption {k}" for i in ids for k in range(5)]
            (root / texts / f"{split}_caps.txt").write_text("\n".join(caps) + "\n")
        (root / "id_mapping.json").write_text(json.dumps(mapping))
        return root

    return write


@pytest.fixture
def regions(tmp_path):
    """Writes features of 2 images a split, five captions each; repeated: one row a caption."""

    def write(repeated=False, ids=False, dtype=np.float32, width=2048, folder="f30k_precomp"):
        root = tmp_path / folder
        root.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        for s, split in enumerate(("train", "dev", "test")):
            rows = random.standard_normal((2, 36, width)).astype(dtype)
            np.save(root / f"{split}_ims.npy", rows.repeat(5, axis=0) if repeated else rows)
            (root / f"{split}_caps.txt").write_text(
                "".join(f"{split} {i} caption {k}\n" for i in "ab" for k in range(5))
            )
            if ids:
                (root / f"{split}_ids.txt").write_text(f"{2 * s}\n{2 * s + 1}\n")
        return root

    return write


@pytest.fixture
def coco(tmp_path):
    """Writes COCO's own captions of 2014: 3 images of train, 2 of val, 2 captions each in a mixed order."""

    def write(change=lambda said: None):
        root = tmp_path / "mscoco"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        for start, (split, count) in ((0, ("train", 3)), (10, ("val", 2))):
            images, captions = [], []
            for i in range(start, start + count):
                name = f"COCO_{split}2014_{i:012d}.jpg"
                images.append({"id": i, "file_name": name, "license": 1})
                picture(root / f"{split}2014" / name, i)
            for k in (1, 0):
                captions += [
                    {"id": 10 * i["id"] + k, "image_id": i["id"], "caption": f"c{k} of {i['id']}"} for i in images
                ]
            said = {"info": {}, "images": images, "annotations": captions}
            change(said)
            (root / "annotations" / f"captions_{split}2014.json").write_text(json.dumps(said))
        return root

    return write
