"""The demo, whole, on forty small made scenes: its files, its figures, its reuse, its fallback."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from avse.cli import main
from avse.data.openclipart import OpenClipartUnavailable
from avse.data.scenes import make_scenes
from avse.demo import job
from avse.demo.report import table
from avse.demo.systems import RECIPES, SYSTEMS, recipe_for, title_of
from avse.files import verify_manifest
from avse.index import Index
from avse.model import AVSE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    make_scenes(folder / "data" / "scenes", count=40, size=64, seed=0)
    report = job.run_demo(folder / "run", folder / "data", scenes=True, epochs=1)
    return folder, report


def test_the_promised_files_and_fields(demo):
    folder, report = demo
    run = folder / "run"
    assert verify_manifest(run / "model")["fingerprint"] == report["fingerprint"]
    assert json.loads((run / "report.json").read_text()) == json.loads(json.dumps(report))
    assert set(report["systems"]) == {"avse", "vse_infinity", "vse_infinity_wide", "infonce"}
    assert {"dataset", "split", "pairs", "systems", "differences", "timings"} <= set(report)
    for row in report["systems"].values():
        assert {"mean", "ci", "seeds"} <= set(row["rsum"]) and {"i2t", "t2i", "duplicate_aware"} <= set(row)
        assert row["rsum"]["ci"][0] <= row["rsum"]["mean"] + 1e-9 <= row["rsum"]["ci"][1] + 2e-9
    assert set(report["differences"]) == {"avse-vse_infinity", "avse-vse_infinity_wide", "avse-infonce"}
    for row in report["differences"].values():
        assert {"mean", "ci", "p"} <= set(row)
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "http" not in page.split("</head>")[1]
    assert all(name in page for name in SYSTEMS)
    assert "avse" in table(report) and "paired differences" in table(report)


def test_the_index_holds_every_picture_and_agrees_with_the_model(demo):
    folder, report = demo
    model = AVSE.from_pretrained(folder / "run" / "model")
    with Index.open(folder / "run" / "index.avse") as index:
        assert len(index) == report["indexed"] == 40
        [best, *_] = index.search("a red star", k=1)
        picture = index.picture(best)
        assert picture.is_file()
        score = model.similarity(model.encode_images([picture]), model.encode_texts(["a red star"]))
        assert float(score[0, 0]) == pytest.approx(best.score, abs=5e-3)  # the index embeds float16 grids


def test_a_second_run_reuses_what_is_there(demo, monkeypatch, capsys):
    folder, report = demo

    def refuse(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr("avse.experiment.Trainer", refuse)
    before = (folder / "run" / "model" / "model.safetensors").stat().st_mtime_ns
    asked = ["demo", "--out", str(folder / "run"), "--data", str(folder / "data"), "--scenes", "--epochs", "1"]
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert main(asked) == 0
    again = json.loads((folder / "run" / "report.json").read_text())
    told = capsys.readouterr().out
    assert told.startswith(table(again)) and f"report with pictures: {folder / 'run' / 'report.html'}" in told
    first = told.split("try next:\n")[1].splitlines()[0]
    assert first == f"  . {Path(sys.executable).parent / 'activate'}" and "  avse " in told
    assert again["systems"] == report["systems"] and again["differences"] == report["differences"]
    assert (folder / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(AssertionError, match="trained again"):
        job.run_demo(folder / "run", folder / "data", scenes=True, epochs=2)


def test_made_scenes_take_the_place_of_open_clip_art_and_say_so(demo, monkeypatch, caplog, tmp_path):
    folder, _ = demo

    def none(*args, **kwargs):
        raise OpenClipartUnavailable("apt-get is not here")

    monkeypatch.setattr(job, "build_openclipart", none)
    assert job._obtain(folder / "data", scenes=False) == folder / "data" / "scenes"
    assert "apt-get is not here" in caplog.text and "made scenes take its place" in caplog.text


@pytest.mark.parametrize("dataset", RECIPES)
def test_systems_are_compared_fairly(dataset):
    recipes = {name: recipe_for(dataset, name, 0, None) for name in SYSTEMS}
    ours = recipes["avse"].model
    wide = recipes["vse_infinity_wide"].model
    assert wide.embed_dim * wide.num_views == ours.num_views * ours.embed_dim  # as wide as AVSE's image side
    for name, recipe in recipes.items():
        assert recipe.model.image_encoder == ours.image_encoder and recipe.model.text_encoder == ours.text_encoder
        assert recipe.train.epochs == recipes["avse"].train.epochs >= 12
        assert recipe.train.batch_size == recipes["avse"].train.batch_size
        assert title_of(name, recipe)
    for name in ("vse_infinity", "vse_infinity_wide", "infonce"):
        assert (recipes[name].model.num_views, recipes[name].model.num_image_blocks) == (1, 1)
    assert recipes["vse_infinity"].model.embed_dim == recipes["infonce"].model.embed_dim == ours.embed_dim == 512
    assert recipes["infonce"].train.objective == "infonce" and recipes["vse_infinity"].train.objective == "hinge"


def test_misuse(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["demo", "--seeds", "0"])
    assert stop.value.code == 2 and "--seeds" in capsys.readouterr().err


def test_figures_are_means_over_seeds(demo):
    _, report = demo
    for row in report["systems"].values():
        assert row["rsum"]["mean"] == pytest.approx(np.mean(row["rsum"]["seeds"]))
