"""avse.check: what is found of each layout, and which protocols it allows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from avse.check import _why_not, check_dataset
from avse.data import load_dataset
from avse.data.dataset import PairDataset
from avse.protocols import PROTOCOLS, prepare


def made(count, captions=5, split="test", ids=False):
    records = [
        {"split": split, **({"cocoid": i, "caption_ids": list(range(captions))} if ids else {})} for i in range(count)
    ]
    return PairDataset(
        name="made",
        split=split,
        root=Path(),
        image_ids=tuple(map(str, range(count))),
        image_paths=(Path(),) * count,
        captions=tuple(str(k) for k in range(count * captions)),
        text_to_image=np.repeat(np.arange(count), captions),
        skipped=(),
        records=tuple(records),
    )


def test_protocols_by_counts_and_ids():
    def why(parts):
        return {name: _why_not(name, parts) for name in PROTOCOLS}

    found = why({"test": made(1_000)})
    assert found["plain"] == found["flickr30k-1k"] == ""
    assert (
        "is defined on 5,000 test images; made, split test, has 1,000"
        in found["coco-5k"]
        == found["coco-1k"].replace("coco-1k", "coco-5k")
    )
    coco = why({"test": made(5_000, captions=6)})
    assert coco["coco-5k"] == coco["coco-1k"] == "" and "needs COCO's ids" in coco["eccv"]
    assert "others by their ids" in why({"test": made(5_000, ids=True)})["coco-5k"]
    both = why({"test": made(1_000), "testall": made(5_000, split="testall")})
    assert both["flickr30k-1k"] == both["coco-5k"] == ""
    assert "1,000 images with fewer, as '0' with 4" in why({"test": made(1_000, captions=4)})["flickr30k-1k"]
    assert why({"val": made(2, split="val")})["plain"] == "no usable split 'test'; there is val"


def test_what_the_check_allows_is_what_evaluate_measures(karpathy):
    """The names are those of --protocol, and the reasons those of its refusals."""
    root = karpathy()
    report = check_dataset(root)
    assert list(report["protocols"]) == list(PROTOCOLS)
    data = load_dataset(root, split="test")
    for name, said in report["protocols"].items():
        if said["runs"]:
            assert prepare([name], data).num_images
        else:
            with pytest.raises(ValueError) as refusal:
                prepare([name], data)
            assert str(refusal.value) == said["why"]


def test_a_protocol_that_is_claimed_must_be_possible(karpathy, research, tmp_path):
    root = karpathy()
    report = check_dataset(root)
    assert report["layout"]["kind"] == "karpathy" and report["layout"]["family"] == "coco" and report["ok"]
    assert report["splits"]["train"] == {"images": 3, "captions": 15}
    assert report["notes"] == ["1 images of restval are part of train, by the usual protocol"]
    said = json.loads((root / "dataset_coco.json").read_text())
    test = next(image for image in said["images"] if image["split"] == "test")
    test["sentences"], test["sentids"] = test["sentences"][:4], test["sentids"][:4]
    (root / "dataset_coco.json").write_text(json.dumps(said))
    report = check_dataset(root)
    assert not report["ok"] and "has 4 captions, 5 are wanted" in report["problems"][0]
    research()
    by_path, by_name = check_dataset(tmp_path / "f30k"), check_dataset("flickr30k", root=tmp_path)
    assert by_path["ok"] and not by_name["ok"]
    assert "flickr30k-1k cannot be run: protocol flickr30k-1k is defined on 1,000" in by_name["problems"][0]


def test_missing_files_and_a_split_that_is_not_there(karpathy, coco):
    root = karpathy()
    (root / "images/val2014/COCO_val2014_000000000001.jpg").unlink()
    (root / "images/train2014/COCO_train2014_000000000003.jpg").write_bytes(b"x")
    report = check_dataset(root)
    assert [(skip["name"][-5:], skip["reason"]) for skip in report["skipped"]] == [
        ("1.jpg", "missing: no such file"),
        ("3.jpg", "no picture of a known format"),
    ]
    assert report["splits"]["val"] == {"images": 0, "captions": 0} and report["splits"]["train"]["images"] == 2
    assert len(check_dataset(root, quick=True)["skipped"]) == 1
    report = check_dataset(coco())
    assert report["problems"] == ["no usable picture in split 'test'"] and not report["ok"]
    assert report["protocols"]["plain"]["why"] == "no usable split 'test'; there is train, val"


def test_duplicates_across_splits(research, regions):
    root = research()
    (root / "images/1005.jpg").write_bytes((root / "images/1000.jpg").read_bytes())
    for file in ("ids", "caps"):  # the field's testall holds test
        (root / f"testall_{file}.txt").write_text((root / f"test_{file}.txt").read_text())
    report = check_dataset(root)
    reasons = [duplicate["reason"] for duplicate in report["duplicates"]]
    assert reasons == [f"in {split}, the same pixels as 1000.jpg in train" for split in ("test", "testall")]
    (root / "dev_ids.txt").write_text("0\n4\n")
    assert check_dataset(root, quick=True)["duplicates"] == [
        {"name": "1000.jpg", "reason": "in val, the same id as 1000.jpg in train"}
    ]


def test_features_are_compared_and_must_be_finite(regions):
    root = regions(repeated=True)
    assert check_dataset(root)["ok"] and check_dataset(root, quick=True)["duplicates"] == []
    array = np.load(root / "test_ims.npy")
    array[0:5] = np.load(root / "train_ims.npy")[5]
    array[5:, 35, 7] = np.nan
    np.save(root / "test_ims.npy", array)
    report = check_dataset(root)
    assert report["duplicates"] == [{"name": "row-0", "reason": "in test, the same features as row-5 in train"}]
    assert report["skipped"] == [{"name": "row-5", "reason": "not finite: row 5 holds NaN or infinity"}]
    assert report["splits"]["test"] == {"images": 1, "captions": 5}
    (root / "train_ids.txt").write_text("a\nb\n")
    (root / "test_ids.txt").write_text("b\nc\n")
    assert check_dataset(root, quick=True)["duplicates"][0]["reason"] == "in test, the same id as b in train"


def test_nothing_usable_says_where_pictures_were_looked_for(karpathy, capsys):
    with pytest.raises(ValueError, match=r"nothing usable in split 'all': 5 images.*looked for in .*5 missing"):
        root = karpathy()
        (root / "images").rename(root / "lost")
        check_dataset(root)


def test_on_the_command_line(research, tmp_path, capsys):
    from avse.cli import main

    root = research()
    assert main(["data", "check", str(root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["layout"] == {"kind": "research", "path": str(root / "id_mapping.json"), "family": ""}
    assert main(["data", "check", "flickr30k", "--root", str(tmp_path), "--quick"]) == 1
    said = capsys.readouterr().out
    assert "layout: research, by " in said and ", of flickr30k" in said
    assert "protocol plain: yes" in said and "protocol coco-5k: no, protocol coco-5k is defined on 5,000" in said
    assert "problem: flickr30k-1k cannot be run" in said and said.rstrip().endswith("not usable as it is")
    for picture in (root / "images").iterdir():
        picture.unlink()
    assert main(["data", "check", str(root)]) == 1
    assert "7 missing" in capsys.readouterr().err
    assert main(["data", "check", "coco", "--root", str(tmp_path / "no")]) == 1


def test_what_a_script_would_not_notice_is_said(regions, research):
    root = regions()
    wide = np.load(root / "test_ims.npy")
    np.save(root / "test_ims.npy", np.concatenate([wide, wide[:, :, :6]], axis=2))
    report = check_dataset(root, quick=True)
    assert not report["ok"] and report["problems"][-1].startswith("the splits hold features of different shapes: ")
    root = research()
    for file in ("ids", "caps"):
        (root / f"dev_{file}.txt").rename(root / f"trian_{file}.txt")
    report = check_dataset(root)
    assert any(note.startswith("split 'trian' is none of train, val, test, testall") for note in report["notes"])
