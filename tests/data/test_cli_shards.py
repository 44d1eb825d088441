"""avse data shards as somebody new would use it."""

from __future__ import annotations

import json
import shlex

import pytest

from avse.cli import main
from avse.data import load_dataset
from avse.data.shards import PairShards


@pytest.fixture
def scenes(tmp_path, capsys):
    assert main(["data", "scenes", "--out", str(tmp_path / "my scenes"), "--count", "20", "--size", "48"]) == 0
    capsys.readouterr()
    return tmp_path / "my scenes"


def test_from_pictures_to_shards_and_the_next_command(scenes, tmp_path, capsys):
    out = tmp_path / "my shards"
    assert main(["data", "shards", str(scenes), "--out", str(out), "--samples", "4"]) == 0
    printed = capsys.readouterr()
    counts, told, command = printed.out.splitlines()
    assert "20 pictures with" in counts and "train 14" in counts
    assert told.startswith("train in 4 shards, ")
    assert "writing shards" in printed.err
    verb, name, folder = shlex.split(command)
    assert (verb, name, folder) == ("avse", "train", str(out))
    assert PairShards.open(folder).num_images == 14
    assert load_dataset(folder, split="val").num_images == load_dataset(folder, split="test").num_images == 3


def test_json_again_and_force(scenes, tmp_path, capsys):
    words = ["data", "shards", str(scenes), "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["splits"] == {"train": 14, "val": 3, "test": 3} and said["shards"] == 1
    assert main(words) == 0 and json.loads(capsys.readouterr().out) == said
    assert main([*words, "--samples", "7"]) == 1
    assert "shards of other samples_per_shard" in capsys.readouterr().err
    assert main([*words, "--samples", "7", "--force"]) == 0
    assert json.loads(capsys.readouterr().out)["shards"] == 2


def test_what_was_left_out_is_told(scenes, tmp_path, capsys):
    load_dataset(scenes, split="train").image_paths[0].write_bytes(b"")
    assert main(["data", "shards", str(scenes), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "skipped 1: empty (0 bytes)" in printed and "skipped.json" in printed


def test_mistakes_end_with_one_line(tmp_path, capsys):
    assert main(["data", "shards", str(tmp_path / "no"), "--out", str(tmp_path / "out")]) == 1
    assert "no such folder or file" in capsys.readouterr().err
    for words in (["--out", "x", "--samples", "0"], []):
        with pytest.raises(SystemExit) as stop:
            main(["data", "shards", str(tmp_path), *words])
        assert stop.value.code == 2
