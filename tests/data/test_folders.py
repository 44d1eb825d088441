"""avse.data.folders: image folders and saved sets of Hugging Face's datasets, without a network."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from PIL import Image

from avse.data import load_dataset

datasets = pytest.importorskip("datasets")


def image_folder(folder, rows, offset=0):
    folder.mkdir(parents=True)
    for i, row in enumerate(rows):
        Image.new("RGB", (8, 8), (offset + i, 0, 0)).save(folder / f"test_{i}.png")
        row.setdefault("file_name", f"test_{i}.png")
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return folder


def test_an_image_folder_with_split_folders(tmp_path):
    root = tmp_path / "set [x]"
    for n, split in enumerate(("train", "validation", "test")):
        image_folder(root / split, [{"text": f"{split} {i} ü", "k": i} for i in range(2)], 10 * n)
    data = load_dataset(root, split="val")
    assert data.image_ids == ("validation/test_0.png", "validation/test_1.png") and data.root == root
    assert data.captions == ("validation 0 ü", "validation 1 ü") and data.records[1] == {"split": "val", "k": 1}
    assert load_dataset(root, split="all").num_images == 6 and data.name == "set [x]"
    with pytest.raises(ValueError, match="no split 'validation'.*did you mean 'val'"):
        load_dataset(root, split="validation")


def test_a_flat_image_folder_by_hash_or_by_a_column(tmp_path):
    flat = image_folder(tmp_path / "flat", [{"caption": f"c {i}"} for i in range(6)])
    assert "assigned by the SHA-256" in load_dataset(flat, split="train").summary()
    rows = [{"captions": ["a", " ", "b"], "split": split} for split in ("train", "validation", "test")]
    named = image_folder(tmp_path / "named", rows)
    data = load_dataset(named / "metadata.jsonl", split="val")
    assert data.captions == ("a", "b") and data.image_ids == ("test_1.png",)
    assert data.skipped[0].reason == "empty caption: row 1"


def test_csv_with_a_caption_a_row(tmp_path):
    root = image_folder(tmp_path / "set", [{}, {}])
    (root / "metadata.jsonl").unlink()
    (root / "metadata.csv").write_text(
        "file_name,text,split\ntest_0.png,one,test\ntest_0.png,two,test\ntest_1.png,,test\n", "utf-8"
    )
    data = load_dataset(root)
    assert data.captions_of(0) == ("one", "two") and data.num_images == 1
    assert {skip.reason for skip in data.skipped} == {"empty caption: row 2", "no caption"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"title": "x"}], r"row 0: one column of captions, caption, text is wanted, found \['title'\]"),
        ([{"text": "x", "caption": "y"}], r"row 0: one column of .*found \['caption', 'text'\]"),
        ([{"text": 3}], "row 0: 'text' must be a text or a list of texts, found 3"),
        ([{"text": "x", "split": "all"}], "row 0: 'split' must be a name other than all"),
        ([{"text": "x", "file_name": "../out.png"}], "Invalid metadata file_name '../out.png'|leaves the folder"),
    ],
)
def test_wrong_image_folders(tmp_path, rows, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "out.png")
    root = image_folder(tmp_path / "set", rows)
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(root)
    assert str(root) in str(error.value)


def test_metadata_that_datasets_cannot_read(tmp_path):
    root = image_folder(tmp_path / "set", [{"text": "x"}])
    (root / "metadata.jsonl").write_text("{")
    with pytest.raises(ValueError, match=r"metadata.jsonl:1: not JSON"):
        load_dataset(root)
    (root / "metadata.jsonl").write_text('{"file_name": 3}')
    with pytest.raises(ValueError, match="set: no image folder that datasets can read"):
        load_dataset(root)
    with pytest.raises(ValueError, match="has no use here"):
        load_dataset(root, root=tmp_path)


def test_a_saved_set_is_refused_with_the_way_out(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved: a set that save_to_disk wrote .* with metadata.csv"):
        load_dataset(tmp_path / "saved")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved"]


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'pip install "avse\[hf\]"'):
        load_dataset(image_folder(tmp_path / "set", [{"text": "x"}]))


def test_no_torch_and_no_datasets_where_they_are_not_needed(tmp_path):
    root = image_folder(tmp_path / "set", [{"text": "x"}] * 3)
    code = (
        "import sys, avse.data; assert 'datasets' not in sys.modules;"
        f"assert avse.data.load_dataset({str(root)!r}, split='all').num_images;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
