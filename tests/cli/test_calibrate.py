"""`avse evaluate --calibrate` and what follows: the folder stays whole, `info` and `search` show it."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from avse import checkpoint, files
from avse.data.scenes import make_scenes
from avse.model import AVSE


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Made scenes with some 30 pictures to validate on."""
    folder = tmp_path_factory.mktemp("many") / "scenes"
    make_scenes(folder, count=280, size=32, seed=0)
    return folder


@pytest.fixture(scope="module")
def untrained(tmp_path_factory, tiny_config):
    return AVSE(tiny_config).save_pretrained(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def model(untrained, tmp_path):
    return shutil.copytree(untrained, tmp_path / "m")


def test_a_folder_is_calibrated_once_and_search_says_what_is_weak(avse, model, many, tmp_path):
    before = AVSE.from_pretrained(model)
    assert before.calibration is None and "not calibrated" in avse("info", model).out
    calibrate = ("evaluate", model, many, "--split", "val", "--bootstrap", 0, "--calibrate")
    said = avse(*calibrate, "--false-accepts", 0.1)
    assert said.code == 0 and "rSum" in said.out and "0.1 of sentences without an answer pass" in said.err
    after = AVSE.from_pretrained(model)
    assert after.calibration is not None and after.calibration.false_accepts == 0.1
    assert after.calibration.facts["split"] == "val" and after.fingerprint == before.fingerprint
    assert avse("verify", model).code == 0 and "not calibrated" not in avse("info", model).out
    again = avse(*calibrate)
    assert again.code == 1 and "--force" in again.lines[-1] and again.out == ""
    assert avse(*calibrate, "--force").code == 0
    assert AVSE.from_pretrained(model).calibration.false_accepts == 0.05
    copy = AVSE.from_pretrained(model).save_pretrained(tmp_path / "copy")
    assert AVSE.from_pretrained(copy).calibration == AVSE.from_pretrained(model).calibration

    # a threshold that nothing reaches: every answer is weak
    values = json.loads((model / "calibration.json").read_text())
    values["t2i"]["thresholds"] = [9.0] * len(values["t2i"]["thresholds"])
    checkpoint.keep_calibration(model, values, force=True)
    assert avse("index", many / "images", "--out", tmp_path / "i.avse", "--model", model, "--store", "memory").code == 0
    found = avse("search", tmp_path / "i.avse", "a red star", "-k", 3, "--json")
    assert all(hit["weak"] is True and 0 <= hit["confidence"] <= 1 for hit in found.json) and len(found.json) == 3
    assert "no good match for 'a red star'" in found.err
    lines = avse("search", tmp_path / "i.avse", "a red star", "-k", 3).out.splitlines()
    assert all(line.endswith("(weak)") and "%" in line for line in lines)
    (tmp_path / "q.txt").write_text("a red star\na dog\n")
    many_asked = avse("search", tmp_path / "i.avse", "--queries", tmp_path / "q.txt", "-k", 3, "--json")
    for one, other in zip(many_asked.json[:3], found.json):
        assert (one["id"], one["weak"], one["query"]) == (other["id"], other["weak"], "a red star")
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
    both = avse("search", tmp_path / "i.avse", "a red star", "--image", next((many / "images").iterdir()), "--json")
    assert all(hit["weak"] is None and hit["confidence"] is None for hit in both.json) and "no good" not in both.err


def test_what_cannot_calibrate_is_refused_before_anything_is_read(avse, model, many, scenes, pair_folders):
    for split, why in (("test", "cannot be measured on it"), ("train", "too well"), ("all", "holds the test split")):
        said = avse("evaluate", model, many, "--split", split, "--calibrate")
        assert said.code == 2 and why in said.lines[0] and "--split val" in said.lines[0] and len(said.lines) == 1
    assert avse("evaluate", model, many, "--false-accepts", 0.1).code == 2
    assert avse("evaluate", model, model, many, "--ensemble", "--split", "val", "--calibrate").code == 2
    half = avse("evaluate", model, many, "--split", "val", "--calibrate", "--precision", "bf16")
    assert half.code == 2 and "--precision" in half.lines[0]
    for share in ("0", "0.6", "x"):
        with pytest.raises(SystemExit):
            avse("evaluate", model, many, "--split", "val", "--calibrate", "--false-accepts", share)
    said = avse("evaluate", pair_folders["clip"], many, "--split", "val", "--calibrate")
    assert said.code == 1 and "no model folder of avse" in said.lines[-1] and "save_pretrained" in said.lines[-1]
    few = avse("evaluate", model, scenes, "--split", "val", "--calibrate", "--bootstrap", 0)
    assert few.code == 1 and "too few to calibrate" in few.lines[-1]
    assert not (model / "calibration.json").exists()


@pytest.mark.parametrize("force", [False, True])
def test_a_kill_at_any_moment_leaves_the_folder_whole(model, monkeypatch, force):
    fingerprint = AVSE.from_pretrained(model).fingerprint
    former, new = _values(0.1), _values(0.2)
    if force:
        checkpoint.keep_calibration(model, former)
    replace, moments = os.replace, 0
    while True:
        copy = shutil.copytree(model, model.with_name(f"copy{moments}"))
        left = moments

        def dies(source, target):
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", dies)
        try:
            checkpoint.keep_calibration(copy, new, force=force)
            finished = True
        except KeyboardInterrupt:
            finished = False
        monkeypatch.undo()
        files.verify_manifest(copy)
        loaded = AVSE.from_pretrained(copy)
        kept = loaded.calibration and loaded.calibration.false_accepts
        assert kept in ((0.2,) if finished else (0.1, None)) and loaded.fingerprint == fingerprint
        checkpoint.keep_calibration(copy, new, force=True)
        assert AVSE.from_pretrained(copy).calibration.false_accepts == 0.2
        if finished:
            break
        moments += 1
    assert moments == (3 if force else 2)


def test_a_calibration_of_another_version_costs_the_marks_and_no_more(avse, model, many, caplog):
    checkpoint.keep_calibration(model, {**_values(0.1), "format": 99})
    assert AVSE.from_pretrained(model).calibration is None
    assert "format 99" in caplog.text and str(model) in caplog.text and "--calibrate --force" in caplog.text
    calibrate = ("evaluate", model, many, "--split", "val", "--bootstrap", 0, "--calibrate", "--force")
    assert avse(*calibrate).code == 0
    assert AVSE.from_pretrained(model).calibration.false_accepts == 0.05


def test_a_damaged_folder_is_not_calibrated(model):
    with open(model / "config.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(files.ManifestError):
        checkpoint.keep_calibration(model, _values(0.1))


def _values(share):
    side = {"sizes": [8], "thresholds": [0.5], "slope": 1.0, "intercept": 0.0, "questions": 20, "recall": 0.5}
    return {"format": 1, "false_accepts": share, "facts": {}, "t2i": side, "i2t": side}
