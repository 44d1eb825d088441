"""avse data: what it prints and how it exits, without the rest of the command line."""

from __future__ import annotations

import argparse
import json

import pytest
from PIL import Image

from avse.cli import data as verb


def run(*words):
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    return verb.run(parser.parse_args(words))


def write(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_scenes_then_check(tmp_path, capsys):
    out = str(tmp_path / "s")
    assert run("scenes", "--out", out, "--count", "12", "--size", "48") == 0
    assert "12 pictures with" in capsys.readouterr().out
    assert run("scenes", "--out", out, "--count", "12", "--size", "48", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["splits"] == {"train": 8, "val": 2, "test": 2}
    with pytest.raises(FileExistsError, match="count 12, 13 is wanted"):
        run("scenes", "--out", out, "--count", "13", "--size", "48")
    assert run("scenes", "--out", out, "--count", "13", "--size", "48", "--force") == 0
    capsys.readouterr()
    assert run("check", out) == 0
    assert "train: 9 images" in capsys.readouterr().out
    assert run("check", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and report["skipped"] == report["duplicates"] == report["problems"] == []


def test_check_lists_what_is_wrong(tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i, name in enumerate("abc"):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{name}.png")
    (folder / "b_again.bmp").write_bytes(b"")
    Image.new("RGB", (8, 8), (1, 0, 0)).save(folder / "b_again.bmp")
    data = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(data[:-30])
    lines = [("a.png", "train"), ("b.png", "train"), ("b_again.bmp", "val"), ("c.png", "test"), ("gone.png", "extra")]
    write(folder, *({"image": image, "captions": ["x"], "split": split} for image, split in lines))
    assert run("check", str(folder), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["splits"] == {
        "train": {"images": 2, "captions": 2},
        "val": {"images": 1, "captions": 1},
        "test": {"images": 0, "captions": 0},
    }
    assert report["duplicates"] == [{"name": "b_again.bmp", "reason": "in val, the same pixels as b.png in train"}]
    assert [skip["name"] for skip in report["skipped"]] == ["gone.png", "c.png"]
    assert report["problems"] == ["no usable picture in split 'test'"]
    assert run("check", str(folder)) == 1
    printed = capsys.readouterr().out
    assert "in two splits: b_again.bmp: in val" in printed and "not usable as it is" in printed


def test_openclipart_passes_its_options_on(tmp_path, capsys, monkeypatch):
    seen = {}

    def build(out, **options):
        seen.update(options, out=out)
        return {
            "pictures": 1,
            "captions": 2,
            "splits": {"train": 1},
            "captions_shared": 0.5,
            "skipped": {"icon theme": 3},
        }

    monkeypatch.setattr("avse.data.openclipart.build_openclipart", build)
    assert run("openclipart", "--out", str(tmp_path), "--size", "64", "--debs", "d", "--force") == 0
    assert (str(seen["out"]), seen["size"], str(seen["debs"]), seen["force"]) == (str(tmp_path), 64, "d", True)
    printed = capsys.readouterr().out
    assert "1 pictures with 2 captions (train 1)" in printed and "skipped 3: icon theme" in printed
