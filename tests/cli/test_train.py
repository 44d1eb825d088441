"""`avse train`: what it leaves, what repeats it, what it refuses."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import yaml
from PIL import Image

import warm
from avse.config import load_recipe
from avse.data import load_dataset
from avse.files import verify_manifest
from avse.trainer import Trainer


def test_a_run_leaves_what_repeats_it(avse, scenes, tiny, run_folder, tmp_path):
    recipe = load_recipe(run_folder / "recipe.yaml")
    assert recipe.data.source == str(scenes) and recipe.train.seed == 0 and recipe.model.embed_dim == 16
    assert recipe.data.cache == str(run_folder.parent / "cache") and any((run_folder.parent / "cache").iterdir())
    said = avse("train", "--config", run_folder / "recipe.yaml", "--out", tmp_path / "again", "--json")
    assert said.code == 0
    [facts] = said.json
    assert facts["model"] == str(tmp_path / "again" / "model") and facts["best_epoch"] in (0, 1)
    for name in ("history.json", "recipe.yaml", "model/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (run_folder / name).read_bytes()


def test_nothing_is_replaced_unasked_and_a_stopped_run_goes_on(avse, scenes, tiny, tmp_path, monkeypatch):
    out = tmp_path / "run"
    train = ("train", scenes, "--out", out, "--cache", tmp_path / "cache", *tiny)
    fit = Trainer.fit

    def stop(self, *args, **kwargs):
        def after(entry):
            assert load_recipe(out / "recipe.yaml").data.source == str(scenes)  # written before the first epoch
            raise KeyboardInterrupt

        return fit(self, *args, **kwargs, on_epoch=after)

    monkeypatch.setattr(Trainer, "fit", stop)
    said = avse(*train)
    assert said.code == 130 and said.lines[-1] == "avse train: interrupted; --resume goes on"
    monkeypatch.setattr(Trainer, "fit", fit)
    said = avse(*train)
    assert said.code == 1 and "holds a run that was stopped; --resume goes on" in said.err
    said = avse("evaluate", out, scenes)
    assert said.code == 1 and "run that was not finished: avse train --resume" in said.err
    kept = (out / "recipe.yaml").read_bytes()
    said = avse(*train, "--set", "train.lr=1", "--resume")
    assert said.code == 1 and "lr 0.002 there, 1.0 now" in said.err and (out / "recipe.yaml").read_bytes() == kept
    assert avse(*train, "--resume").code == 0
    history = (out / "history.json").read_bytes()
    assert len(json.loads(history)) == 2
    said = avse(*train)
    assert said.code == 1 and "holds a model already" in said.err and len(said.lines) == 1
    assert avse(*train, "--force", "--seed", 7).code == 0
    assert (out / "history.json").read_bytes() != history and load_recipe(out / "recipe.yaml").train.seed == 7
    verify_manifest(out / "model")


def test_presets_and_fine_tuning(avse, scenes, tiny, tmp_path):
    common = ("train", scenes, *tiny, "--set", "train.epochs=1")
    one = avse(*common, "--out", tmp_path / "one", "--preset", "vse_infinity", "--set", "model.block_width=16")
    assert one.code == 0
    recipe = load_recipe(tmp_path / "one" / "recipe.yaml")
    assert (recipe.model.num_views, recipe.model.num_image_blocks, recipe.train.decorrelation_weight) == (1, 1, 0.0)
    tuned = avse(*common, "--out", tmp_path / "tuned", "--preset", "official")
    assert tuned.code == 0
    model = load_recipe(tmp_path / "tuned" / "recipe.yaml").model
    assert not model.image_encoder.frozen and model.image_encoder.sampling_stage == "input" and model.embed_dim == 16
    assert avse("evaluate", tmp_path / "tuned" / "model", scenes, "--bootstrap", 0).code == 0
    said = avse(*common, "--out", tmp_path / "x", "--preset", "official", "--cache", tmp_path / "cache")
    assert said.code == 1 and len(said.lines) == 1 and "frozen" in said.lines[0]
    said = avse("train", scenes, "--out", tmp_path / "y", "--preset", "official")
    assert said.code == 1 and len(said.lines) == 1 and "model.image_encoder.source=FOLDER" in said.lines[0]
    assert not (tmp_path / "y").exists()


def test_own_pictures_with_any_names_and_no_splits(avse, tiny, tmp_path):
    captions, pictures = tmp_path / "my captions.csv", tmp_path / "Bilder für mich"
    (pictures / "Straße 1").mkdir(parents=True)
    rows = ["image,caption"]
    for i in range(9):
        name = f"Straße 1/ein 'Hund' № {i}.jpg"
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (30, 40, 3), np.uint8)).save(pictures / name)
        rows.append(f'"{name}",ein Hund № {i}')
    captions.write_text("\n".join(rows), "utf-8")
    said = avse("train", captions, "--root", pictures, "--out", tmp_path / "my run", *tiny)
    assert said.code == 0 and "assigned by the SHA-256" in said.err
    command = shlex.split(said.out.split("next: ")[1])
    assert command[:1] == ["avse"] and command[-2:] == ["--root", str(pictures)]
    assert avse(*command[1:]).code == 0
    values = yaml.safe_load((tmp_path / "my run" / "recipe.yaml").read_text("utf-8"))
    assert values["data"]["root"] == str(pictures) and values["data"]["source"] == str(captions)


def test_odd_pictures_are_read_or_listed(avse, odd_pictures, tiny, tmp_path, caplog):
    said = avse("train", odd_pictures, "--out", tmp_path / "run", "--cache", tmp_path / "cache", *tiny)
    assert said.code == 0
    told = said.err + caplog.text
    for split in ("train", "val"):
        for name, reason in (("huge.png", "400"), ("gone.png", "missing"), ("cut.jpg", "truncated|cut")):
            [line] = [line for line in told.splitlines() if f"{split}-{name}" in line]
            assert any(word in line for word in reason.split("|")), line
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert sorted(name for name, _ in run["skipped"]) == [
        f"{split}-{name}" for split in ("train", "val") for name in ("cut.jpg", "gone.png", "huge.png")
    ]


def test_an_unusable_set_is_said_in_one_line(avse, unusable, tiny, tmp_path):
    folder, message = unusable
    said = avse("train", folder, "--out", tmp_path / "run", "--cache", tmp_path / "cache", *tiny)
    assert said.code == 1 and said.out == "" and len(said.lines) == 1 and message in said.lines[0], said.err
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "model.embed_dim=10"], "block_width 8 does not divide embed_dim 10; the nearest widths"),
        (["--set", "train.learning=1"], "unknown key 'train.learning'; did you mean"),
        (["--set", "train.lr=["], "the value is not YAML"),
        (["--set", "train.lr"], "expected section.key=value"),
        (["--config", "nowhere.yaml"], "no recipe 'nowhere.yaml': neither a file nor a shipped recipe"),
        (["--preset", "oficial"], "did you mean 'official'"),
        (["--device", "cuda:99"], "--device cuda:99: not usable here"),
        (["--set", "model.image_encoder.source=nowhere"], "nowhere is no folder: an encoder is a local"),
        (["--root", "nowhere"], "nowhere: no such folder of pictures"),
    ],
)
def test_wrong_settings_are_said_in_one_line(avse, scenes, tiny, tmp_path, arguments, message):
    said = avse("train", scenes, "--out", tmp_path / "run", *tiny, *arguments)
    assert said.code == 1 and said.out == "" and len(said.lines) == 1 and message in said.lines[0], said.err
    assert not (tmp_path / "run").exists()


def test_no_data_and_no_validation_split(avse, tiny, tmp_path):
    said = avse("train", "--out", tmp_path / "run", *tiny)
    assert said.code == 1 and "no data: name a folder" in said.lines[0]
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,a dog,train\n")
    said = avse("train", tmp_path, "--out", tmp_path / "run", *tiny)
    assert said.code == 1 and 'add lines with "split": "val", or name no split at all' in said.lines[0]


@pytest.mark.parametrize("value", ["-1", "1.5", "x", str(2**63)])
def test_misuse_names_option_value_and_limit(avse, value, capsys):
    with pytest.raises(SystemExit) as stop:
        avse("train", "data", "--out", "run", "--seed", value)
    assert stop.value.code == 2
    assert f"argument --seed: {value}: a whole number of at least 0" in capsys.readouterr().err


def test_an_ensemble_has_members_with_seeds_of_their_own(avse, scenes, tiny, tmp_path, monkeypatch):
    out = tmp_path / "runs"
    fit, runs = Trainer.fit, []

    def stop_in_the_second(self, *args, **kwargs):
        def after(entry):
            if len(runs) == 2:
                raise KeyboardInterrupt

        runs.append(self.config.seed)
        return fit(self, *args, **kwargs, on_epoch=after)

    ensemble = ("train", scenes, *tiny, "--cache", tmp_path / "cache", "--seed", 5)
    ensemble = (*ensemble, "--out", out, "--set", "ensemble=2")
    monkeypatch.setattr(Trainer, "fit", stop_in_the_second)
    assert avse(*ensemble).code == 130 and runs == [5, 6]
    monkeypatch.setattr(Trainer, "fit", fit)
    first = (out / "member-0" / "history.json").read_bytes()
    said = avse(*ensemble)
    assert said.code == 1 and f"{out / 'member-0'} holds a model already" in said.lines[0]
    said = avse(*ensemble, "--resume")
    assert said.code == 0 and (out / "member-0" / "history.json").read_bytes() == first
    command = shlex.split(said.out.split("next: ")[1])
    models = [str(out / f"member-{i}" / "model") for i in (0, 1)]
    assert command == ["avse", "evaluate", *models, str(scenes), "--ensemble"]
    assert avse(*command[1:], "--bootstrap", 0).code == 0
    for i in (0, 1):  # each is the run of its seed
        recipe = load_recipe(out / f"member-{i}" / "recipe.yaml")
        assert (recipe.train.seed, recipe.ensemble) == (5 + i, 1)
    assert avse("train", "--config", out / "member-1" / "recipe.yaml", "--out", tmp_path / "own").code == 0
    assert (tmp_path / "own" / "history.json").read_bytes() == (out / "member-1" / "history.json").read_bytes()
    assert [len(avse(*ensemble, "--resume", "--json").json)] == [2]


def test_leaks_are_told_left_out_or_fatal(avse, scenes, tiny, tmp_path):
    data = tmp_path / "leaky"
    shutil.copytree(scenes, data)
    train, test = (load_dataset(data, split=split) for split in ("train", "test"))
    train.image_paths[1].write_bytes(test.image_paths[0].read_bytes())
    with Image.open(test.image_paths[1]) as image:
        image.convert("RGB").save(train.image_paths[2], format="JPEG", quality=70)
    words = ("train", data, *tiny, "--cache", tmp_path / "cache", "--set", "train.epochs=1")
    said = avse(*words, "--out", tmp_path / "warn")
    assert said.code == 0 and "2 training pictures stand in another split too" in said.err
    assert train.image_ids[1] in said.err and "same file" in said.err and "near-identical" in said.err
    leaks = json.loads((tmp_path / "warn" / "run.json").read_text())["leaks"]
    assert leaks["found"] == 2 and {leak["image_id"] for leak in leaks["first"]} == set(train.image_ids[1:3])
    said = avse(*words, "--out", tmp_path / "error", "--set", "data.leaks=error")
    assert said.code == 1 and "--set data.leaks=drop" in said.err and not (tmp_path / "error" / "model").exists()
    said = avse(*words, "--out", tmp_path / "drop", "--set", "data.leaks=drop")
    run = json.loads((tmp_path / "drop" / "run.json").read_text())
    assert said.code == 0 and run["data"]["train"]["images"] == train.num_images - 2
    said = avse(*words, "--out", tmp_path / "ignore", "--set", "data.leaks=ignore")
    assert said.code == 0 and "stand in another split" not in said.err


def test_shards_are_streamed_from_a_folder_of_them_or_by_name(avse, scenes, tiny, tmp_path):
    assert avse("data", "shards", scenes, "--out", tmp_path / "shards", "--samples", 5).code == 0
    words = (*tiny, "--set", "train.epochs=1", "--json")
    said = avse("train", tmp_path / "shards", *words, "--out", tmp_path / "a")
    other = avse(
        "train", scenes, *words, "--out", tmp_path / "b", "--set", f"data.shards={tmp_path}/shards/train-*.tar"
    )
    assert said.code == other.code == 0
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in "ab"]
    images = load_dataset(scenes, split="train").num_images
    assert [run["data"]["train"]["images"] for run in runs] == [images, images]
    histories = [json.loads((tmp_path / name / "history.json").read_text()) for name in "ab"]
    assert histories[0] == histories[1]
    said = avse("train", tmp_path / "shards", *words, "--out", tmp_path / "c", "--set", "data.max_train_images=3")
    assert said.code == 1 and "of shards name fewer" in said.err


def test_sigterm_ends_well_and_says_how_to_go_on(scenes, tiny, tmp_path):
    words = [str(word) for word in ("train", scenes, *tiny, "--out", tmp_path / "run", "--set", "train.epochs=2000")]
    process = warm.avse(*words)
    history = tmp_path / "run" / "history.json"
    while process.poll() is None and not history.exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert "stopped, with a checkpoint in" in out and shlex.split(out.split("go on with: ")[1])[1:] == [
        *words,
        "--resume",
    ]
    assert "SIGTERM" in err and not (tmp_path / "run" / "model").exists()
