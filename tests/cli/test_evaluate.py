"""`avse evaluate`: figures, and which folders are no model."""

from __future__ import annotations

import pytest

from avse.cli import main


def test_table_and_json_agree(avse, run_folder, scenes):
    said = avse("evaluate", run_folder / "model", scenes, "--bootstrap", 20)
    assert said.code == 0 and "split test" in said.out and "rSum" in said.out
    arguments = ("evaluate", run_folder / "model", scenes, "--json", "--split", "val", "--bootstrap", 0)
    [one], [other] = avse(*arguments).json, avse(*arguments, "--batch-size", 1).json
    assert one == other and one["split"] == "val" and one["rsum"] > 0 and one["model"] == str(run_folder / "model")
    [cached] = avse(*arguments, "--cache", run_folder.parent / "cache").json
    assert cached["rsum"] == pytest.approx(one["rsum"], abs=20)  # float16 grids may turn near ties
    assert avse("evaluate", run_folder / "model", scenes, "--split", "tst").lines == [
        f"avse evaluate: {scenes / 'captions.jsonl'}: no split 'tst'; it has train (28 images), test (6 images), "
        "val (6 images), or all; did you mean 'test'?"
    ]


def test_odd_pictures_are_read_or_listed(avse, run_folder, odd_pictures):
    said = avse("evaluate", run_folder / "model", odd_pictures, "--json", "--bootstrap", 0)
    assert said.code == 0 and said.json[0]["images"] == 6 and said.json[0]["skipped"] == 3
    for name, reason in (("huge.png", "400"), ("gone.png", "missing"), ("cut.jpg", "")):
        [line] = [line for line in said.lines if f"test-{name}" in line]
        assert line.startswith("  left out: ") and reason in line


def test_an_unusable_set_is_said_in_one_line(avse, run_folder, unusable):
    folder, message = unusable
    said = avse("evaluate", run_folder / "model", folder)
    assert said.code == 1 and said.out == "" and len(said.lines) == 1 and message in said.lines[0], said.err


@pytest.mark.parametrize("verb", ["evaluate", "info", "index", "search"])
def test_other_folders_are_not_taken_for_a_model(avse, run_folder, scenes, tiny_vit_folder, tmp_path, verb):
    pictures, out = scenes / "images", tmp_path / "i.avse"
    if verb == "search":
        assert avse("index", pictures, "--out", out, "--model", run_folder / "model", "--json").code == 0

    def refused(folder):
        arguments = {
            "evaluate": ("evaluate", folder, scenes),
            "info": ("info", folder),
            "index": ("index", pictures, "--out", out, "--model", folder),
            "search": ("search", out, "a dog", "--model", folder),
        }
        said = avse(*arguments[verb])
        assert said.code == 1 and said.out == "" and len(said.lines) == 1, said.err
        return said.lines[0]

    assert f"its model is {run_folder / 'model'};" in refused(run_folder)
    assert "looks like an encoder of transformers" in refused(tiny_vit_folder)
    assert "is no model folder; a model folder, such as avse train leaves in RUN/model, has config.json" in refused(
        scenes
    )
    assert "no" in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "0"], "argument --batch-size: 0: a whole number of at least 1 is wanted"),
        (["--bootstrap", "-1"], "argument --bootstrap: -1: a whole number of at least 0 is wanted"),
    ],
)
def test_misuse_names_option_value_and_limit(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "model", "data", *arguments])
    assert stop.value.code == 2 and message in capsys.readouterr().err
