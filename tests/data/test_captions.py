"""avse.data.captions: what anyone brings, right and wrong."""

from __future__ import annotations

import json
import random
import sys
import unicodedata
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from avse.data import load_dataset
from avse.data.dataset import split_by_hash


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "mine"
    root.mkdir()
    for i, name in enumerate("abcdef"):
        Image.new("RGB", (4, 4), (i, 0, 0)).save(root / f"{name}.png")
    return root


def lines(folder, *objects):
    text = "\n".join(said if isinstance(said, str) else json.dumps(said, ensure_ascii=False) for said in objects)
    (folder / "captions.jsonl").write_text(text, "utf-8")
    return folder


def said(image, *captions, split="test", **rest):
    return {"image": image, "captions": list(captions), "split": split, **rest}


def test_jsonl(folder):
    lines(
        folder,
        said("a.png", "one", " two ", title="A"),
        "",
        said("./b.png", "drei ü\u2028x"),
        said("c.png", "c", split="train"),
    )
    data = load_dataset(folder)
    assert (data.name, data.split, data.root) == ("mine", "test", folder)
    assert data.image_ids == ("a.png", "b.png") and data.image_paths == (folder / "a.png", folder / "b.png")
    assert data.captions == ("one", "two", "drei ü\u2028x")
    assert data.text_to_image.tolist() == [0, 0, 1] and data.text_to_image.dtype == np.int64
    assert data.records == ({"split": "test", "title": "A"}, {"split": "test"})
    assert data.skipped == ()
    assert load_dataset(folder / "captions.jsonl", split="train").image_ids == ("c.png",)
    assert load_dataset(str(folder), split="all").num_images == 3


def test_csv_with_mark_and_quotes(folder):
    rows = '\ufeffimage,Caption,split,place\r\na.png,"one, two\nlines",test,here\r\na.png,again,test,\r\n'
    rows += "\r\nb.png,b,val,\r\n"
    (folder / "captions.csv").write_bytes(rows.encode())
    data = load_dataset(folder)
    assert data.image_ids == ("a.png",) and data.captions == ("one, two\nlines", "again")
    assert data.records[0]["place"] == "here"
    assert load_dataset(folder, split="val").captions == ("b",)


def test_byte_order_mark_in_jsonl(folder):
    (folder / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(said("a.png", "x")).encode())
    assert load_dataset(folder).captions == ("x",)


def test_pictures_in_images_or_elsewhere(folder, tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    (folder / "a.png").rename(tmp_path / "set" / "images" / "a.png")
    lines(tmp_path / "set", said("a.png", "x"))
    assert load_dataset(tmp_path / "set").image_paths == (tmp_path / "set" / "images" / "a.png",)
    lines(tmp_path / "set", said("images/a.png", "x"))
    assert load_dataset(tmp_path / "set").image_ids == ("images/a.png",)
    lines(tmp_path / "set", said("b.png", "x"))
    assert load_dataset(tmp_path / "set", root=folder).image_paths == (folder / "b.png",)
    with pytest.raises(FileNotFoundError, match="no such folder of pictures"):
        load_dataset(tmp_path / "set", root=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"captions\.jsonl:2: not JSON"),
        ("[" * 100_000, r"captions\.jsonl:2: not JSON"),
        ("[1]", r':2: an object with "image" and "captions" is wanted, found a list'),
        ('{"image": "b.png"}', r":2: .* found the keys \['image'\]"),
        ('{"image": "b.png", "captions": "one"}', ':2: "captions" must be a list of texts, found "one"'),
        ('{"image": "b.png", "captions": [1]}', r':2: "captions" must be a list of texts, found \[1\]'),
        ('{"image": "b.png", "captions": ["x"], "split": 3}', ':2: "split" must be a name, found 3'),
        ('{"image": "b.png", "captions": ["x"], "split": "all"}', ':2: a split cannot be called "all"'),
        ('{"image": 3, "captions": ["x"]}', ":2: the image must be a path, found 3"),
        ('{"image": "", "captions": ["x"]}', ":2: the image must be a path"),
        ('{"image": "a\\u0000", "captions": ["x"]}', ":2: the image must be a path"),
        ('{"image": "../b.png", "captions": ["x"]}', r":2: the image .\.\./b\.png. leaves the folder"),
        ('{"image": "x/../../b.png", "captions": ["x"]}', "leaves the folder"),
        ('{"image": "/etc/b.png", "captions": ["x"]}', "leaves the folder"),
        ('{"image": "C:\\\\b.png", "captions": ["x"]}', "leaves the folder"),
        ('{"image": "x\\\\..\\\\..\\\\b.png", "captions": ["x"]}', "leaves the folder"),
        ('{"image": "\\\\b.png", "captions": ["x"]}', "leaves the folder"),
        ('{"image": "b.png", "captions": ["x"]}', r":2: 'b\.png' names no split, as 1 of 2 images"),
        (
            '{"image": "a.png", "captions": ["x"], "split": "dev"}',
            r":2: 'a\.png' is in split 'dev' here and in 'test' in line 1",
        ),
    ],
)
def test_wrong_lines_are_named(folder, line, message):
    lines(folder, said("a.png", "x"), line)
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


def test_other_encodings_are_named_by_line(folder):
    (folder / "captions.jsonl").write_bytes(json.dumps(said("a.png", "x")).encode() + b'\n{"image": "caf\xe9.png"}')
    with pytest.raises(ValueError, match=r"captions\.jsonl:2: not UTF-8 \(byte 0xe9\)"):
        load_dataset(folder)
    (folder / "captions.jsonl").write_text(json.dumps(said("a.png", "x")), "utf-16")
    with pytest.raises(ValueError, match=r"captions\.jsonl:1: not UTF-8"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"captions\.csv:1: the columns image, caption and perhaps split are wanted, found \[\]"),
        ("file,text\n", r":1: .* found \['file', 'text'\]"),
        ("image,caption,caption\n", r":1: the columns"),
        ("image,caption\na.png,x\na.png\n", ":3: 1 fields where the header has 2"),
        ("image,caption\na.png,x,y\n", ":2: 3 fields where the header has 2"),
        ('image,caption\na.png,"x\n', ":2: not CSV"),
        ("image,caption\n../a.png,x\n", ":2: .* leaves the folder"),
        ("image,caption\n", r"captions\.csv: no images in it"),
    ],
)
def test_wrong_csv(folder, text, message):
    (folder / "captions.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_dataset(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_a_link_that_leaves_the_folder(folder, tmp_path):
    (folder / "out.png").symlink_to(tmp_path / "secret.png")
    (folder / "in.png").symlink_to(folder / "a.png")
    lines(folder, said("in.png", "x"), said("out.png", "x"))
    with pytest.raises(ValueError, match=r"captions\.jsonl:2: 'out\.png' is a link that leaves"):
        load_dataset(folder)
    (tmp_path / "linked").symlink_to(folder)
    lines(folder, said("in.png", "x"))
    assert load_dataset(tmp_path / "linked").num_images == 1


def test_lines_of_one_image_are_merged(folder):
    lines(folder, said("a.png", "one", k=1), said("b.png", "b"), said("a.png", "two", k=2, m=3))
    data = load_dataset(folder)
    assert data.image_ids == ("a.png", "b.png") and data.captions_of(0) == ("one", "two")
    assert data.records[0] == {"split": "test", "k": 1, "m": 3}


def test_what_cannot_be_used_is_listed(folder):
    (folder / "text.png").write_text("no picture")
    (folder / "empty.png").touch()
    (folder / "dir.png").mkdir()
    lines(
        folder,
        said("a.png", "good", "  "),
        said("gone.png", "x"),
        said("text.png", "x"),
        said("empty.png", "x"),
        said("dir.png", "x"),
        said("b.png"),
        said("c.png", ""),
        said("gone2.png", "x", split="train"),
    )
    data = load_dataset(folder)
    assert data.image_ids == ("a.png",) and data.captions == ("good",)
    assert [(skip.name, skip.reason) for skip in data.skipped] == [
        ("a.png", "empty caption: line 1"),
        ("gone.png", "missing: no such file"),
        ("text.png", "no picture of a known format"),
        ("empty.png", "empty (0 bytes)"),
        ("dir.png", "no file but a folder or device"),
        ("b.png", "no caption"),
        ("c.png", "empty caption: line 7"),
        ("c.png", "no caption"),
    ]
    assert "skipped 2: no caption" in data.summary()
    assert load_dataset(folder, check_images=False).image_ids == ("a.png", "text.png", "empty.png", "dir.png")


def test_nothing_left_says_what_was_found(folder):
    lines(folder, said("x.png", "x"), said("y.png", "x"), said("b.png"))
    with pytest.raises(ValueError, match=r"nothing usable in split 'test': 3 images listed.*2 missing, 1 no caption"):
        load_dataset(folder)


def test_a_picture_in_two_splits_stays_where_it_measures(folder):
    lines(
        folder,
        said("a.png", "x", split="train"),
        said("b.png", "y", split="train"),
        said("a.png", "x", split="test"),
        said("a.png", "x", split="val"),
        said("c.png", "z", split="val"),
    )
    parts = {split: load_dataset(folder, split=split) for split in ("train", "val", "test")}
    assert {split: part.image_ids for split, part in parts.items()} == {
        "train": ("b.png",),
        "val": ("c.png",),
        "test": ("a.png",),
    }
    assert parts["train"].skipped[0].reason == "in two splits: kept in 'test' (line 3), not in 'train'"
    assert parts["val"].skipped[0].reason == "in two splits: kept in 'test' (line 3), not in 'val'"
    assert parts["test"].skipped == () and load_dataset(folder, split="all").num_images == 3


def test_unknown_split_lists_those_there_are(folder):
    lines(folder, said("a.png", "x"), said("b.png", "x"), said("c.png", "x", split="restval"))
    with pytest.raises(ValueError, match=r"no split 'val'; it has test \(2 images\), restval \(1 images\), or all"):
        load_dataset(folder, split="val")


def test_no_split_named_assigns_by_hash_and_says_so(folder):
    names = [f"{i}.png" for i in range(60)]
    for name in names:
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    lines(folder, *({"image": name, "captions": ["x"]} for name in names))
    parts = {split: load_dataset(folder, split=split) for split in ("train", "val", "test")}
    assert sorted(name for part in parts.values() for name in part.image_ids) == sorted(names)
    assert "no split is named: assigned by the SHA-256" in parts["test"].summary()
    lines(folder, *({"image": name, "captions": ["x"]} for name in reversed(names)))
    assert set(load_dataset(folder, split="val").image_ids) == set(parts["val"].image_ids)


@pytest.mark.parametrize(
    ("splits", "wanted", "message"),
    [
        (("train", "test"), "val", 'or all: add lines with "split": "val", or name no split at all'),
        (("train", "validation"), "val", 'or all: write "split": "val" in place of "validation"'),
        (("train", "Dev"), "val", 'write "split": "val" in place of "Dev"'),
        (("train", "val"), "dev", r"it has train \(1 images\), val \(1 images\), or all; did you mean 'val'\?"),
        (("train", "test-a"), "test_a", "did you mean 'test-a'"),
        (("train", "val"), "nonsense", "or all$"),
        ((None, None), "test", r"no split 'test'; .*No line names a split.*3 pictures are needed"),
    ],
)
def test_a_missing_split_says_what_can_be_done(folder, splits, wanted, message):
    lines(folder, *(said(f"{name}.png", "x", split=split) for name, split in zip("ab", splits)))
    with pytest.raises(ValueError, match=message):
        load_dataset(folder, split=wanted)


@pytest.mark.parametrize("count", [3, 4, 6, 12])
def test_no_split_of_a_tiny_set_is_empty_whatever_its_order(folder, count):
    names = [f"{i}.png" for i in range(count)]
    for name in names:
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    found = set()
    for seed in range(3):
        random.Random(seed).shuffle(names)
        lines(folder, *({"image": name, "captions": ["x"]} for name in names))
        whole = load_dataset(folder, split="all")
        found.add(tuple(sorted(zip(whole.image_ids, (record["split"] for record in whole.records)))))
        assert {split: load_dataset(folder, split=split).num_images for split in ("train", "val", "test")} == dict(
            Counter(record["split"] for record in whole.records)
        )
    assert len(found) == 1 and len({split for _, split in found.pop()}) == 3


def test_where_no_split_is_empty_the_hash_alone_decides(folder):
    names = [f"{i}.png" for i in range(14)]  # 5.png is in test, 9.png in val
    for name in names:
        (folder / name).write_bytes((folder / "a.png").read_bytes())
    lines(folder, *({"image": name, "captions": ["x"]} for name in names))
    splits = {name: split_by_hash(name) for name in names}
    assert set(splits.values()) == {"train", "val", "test"}
    whole = load_dataset(folder, split="all")
    assert {name: record["split"] for name, record in zip(whole.image_ids, whole.records)} == splits


@pytest.mark.skipif(sys.platform == "darwin", reason="both forms are one file there")
def test_names_with_backslashes_or_in_another_unicode_form(folder):
    (folder / "images" / "sub").mkdir(parents=True)
    (folder / "a.png").rename(folder / "images" / "sub" / "a.png")
    composed, decomposed = (unicodedata.normalize(form, "images/caf\u00e9 \u00fc.png") for form in ("NFC", "NFD"))
    (folder / "b.png").rename(folder / decomposed)
    rows = ["image,caption,split", "images\\sub\\a.png,one,test", "images/sub/a.png,two,test"]
    rows += [f"{composed},three,test", f"{composed.replace('/', chr(92))},four,test", "images\\gone.png,five,test"]
    (folder / "captions.csv").write_text("\n".join(rows), "utf-8")
    data = load_dataset(folder)
    assert data.image_ids == ("images/sub/a.png", decomposed) and data.root == folder
    assert data.captions_of(0) == ("one", "two") and data.captions_of(1) == ("three", "four")
    assert [(skip.name, skip.reason) for skip in data.skipped] == [("images\\gone.png", "missing: no such file")]
    assert load_dataset(folder, root=folder).image_ids == data.image_ids


def test_no_caption_file(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds neither captions\.jsonl nor captions\.csv"):
        load_dataset(folder)
    with pytest.raises(FileNotFoundError, match="no such folder or file"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"ends in \.jsonl or \.csv"):
        load_dataset(folder / "a.png")
    lines(folder, said("a.png", "x"))
    (folder / "captions.csv").write_text("image,caption\na.png,x\n")
    with pytest.raises(ValueError, match="name the one to read"):
        load_dataset(folder)
    assert load_dataset(folder / "captions.jsonl").num_images == 1
