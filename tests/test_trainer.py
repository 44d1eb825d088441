"""Training: same seed, same history; kills and resumption; NaN; selection; what is refused. On tiny made scenes."""

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import warm
from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, TrainConfig
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.evaluate import evaluate
from avse.features import FeatureError
from avse.files import verify_manifest
from avse.inputs import open_inputs, select
from avse.model import AVSE
from avse.plots import draw_curves
from avse.trainer import Trainer, TrainingError
from avse.trainer.feed import PairFeed


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "s"
    make_scenes(folder, count=40, size=64, seed=0)
    return {split: load_dataset(folder, split=split) for split in ("train", "val", "test")}


@pytest.fixture
def build(tiny_vit_folder, tiny_bert_folder):
    def make(seed=0, image=None, text=None, **changes):
        torch.manual_seed(seed)
        config = ModelConfig(
            image_encoder=ImageEncoderConfig(source=str(tiny_vit_folder), **(image or {})),
            text_encoder=TextEncoderConfig(source=str(tiny_bert_folder), **(text or {})),
            embed_dim=16,
            block_width=8,
            **changes,
        )
        return AVSE(config)

    return make


def settings(**changes):
    return TrainConfig(**{"epochs": 3, "batch_size": 10, "lr": 2e-3, "size_augment": 0.2, **changes})


def test_one_seed_one_history(build, scenes, tmp_path):
    histories, scores = [], []
    for name in ("a", "b"):
        model = build()
        result = Trainer(model, settings(epochs=2), cache=tmp_path / "cache", progress=False).fit(
            scenes["train"], scenes["val"], out=tmp_path / name
        )
        histories.append((tmp_path / name / "history.json").read_bytes())
        scores.append(evaluate(model, scenes["test"]).to_dict())
        assert result.best_rsum == max(entry["val"]["rsum"] for entry in result.history)
    assert histories[0] == histories[1] and scores[0] == scores[1]
    other = Trainer(build(), settings(seed=1, epochs=2), cache=tmp_path / "cache", progress=False)
    assert other.fit(scenes["train"], scenes["val"]).history != json.loads(histories[0])


def test_the_run_folder_holds_the_best_epoch(build, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr("avse.trainer.loop.draw_curves", draw_curves)
    model = build()
    trainer = Trainer(model, settings(), cache=tmp_path / "cache", progress=False)
    result = trainer.fit(scenes["train"], scenes["val"], out=tmp_path / "run")
    again = AVSE.from_pretrained(tmp_path / "run" / "model")
    report = evaluate(again, scenes["val"], bootstrap=50)
    assert report.rsum == pytest.approx(result.best_rsum, abs=1e-9)
    assert report.interval[0] <= report.rsum + 1e-9 <= report.interval[1] + 1e-9
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["best_epoch"] == result.best_epoch and run["seconds"]["train"] > 0
    assert (tmp_path / "run" / "curves.png").stat().st_size > 1000
    kept = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} - {"lock"}
    rsums = [entry["val"]["rsum"] for entry in result.history]
    best = {f"best-{max(range(done), key=lambda i: (rsums[i], i)):04d}" for done in (2, 3)}  # by then
    assert kept == {"step-00000006", "step-00000009"} | best
    for name in kept:
        verify_manifest(tmp_path / "run" / "checkpoints" / name)


def test_resumed_equals_never_stopped(build, scenes, tmp_path):
    cache = tmp_path / "cache"
    whole = Trainer(build(), settings(), cache=cache, progress=False)
    whole.fit(scenes["train"], scenes["val"], out=tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(entry):
        if entry["epoch"] == 1:
            raise Stop

    with pytest.raises(Stop):
        Trainer(build(), settings(), cache=cache, progress=False).fit(
            scenes["train"], scenes["val"], out=tmp_path / "parts", on_epoch=stop
        )
    model = build(seed=5)  # its weights come from the checkpoint
    Trainer(model, settings(), cache=cache, progress=False).fit(
        scenes["train"], scenes["val"], out=tmp_path / "parts", resume=True
    )
    assert (tmp_path / "parts" / "history.json").read_bytes() == (tmp_path / "whole" / "history.json").read_bytes()
    weights = [(tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_resume_refuses_other_settings_data_and_damage(build, scenes, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "run"
    Trainer(build(), settings(epochs=1), cache=cache, progress=False).fit(scenes["train"], scenes["val"], out=out)
    with pytest.raises(TrainingError, match="another config: epochs 1 there, 2 now"):
        Trainer(build(), settings(epochs=2), cache=cache, progress=False).fit(
            scenes["train"], scenes["val"], out=out, resume=True
        )
    with pytest.raises(TrainingError, match="another val"):
        Trainer(build(), settings(epochs=1), cache=cache, progress=False).fit(
            scenes["train"], scenes["val"].subset([0, 2, 3]), out=out, resume=True
        )
    damage(out / "checkpoints" / "step-00000003" / "weights.safetensors")
    with pytest.raises(TrainingError, match=r"no checkpoint .* is whole: .*weights\.safetensors.*--force"):
        Trainer(build(), settings(epochs=1), cache=cache, progress=False).fit(
            scenes["train"], scenes["val"], out=out, resume=True
        )


def test_only_validation_selects(build, scenes):
    trainer = Trainer(build(), settings(), progress=False)
    with pytest.raises(TrainingError, match="the test split must not choose the epoch"):
        trainer.fit(scenes["train"], scenes["test"])
    with pytest.raises(TrainingError, match="the same pairs would train and choose the epoch"):
        trainer.fit(scenes["train"], scenes["train"])


def test_a_training_is_not_replaced_unasked_and_has_one_owner(build, scenes, tmp_path):
    def fit(seed=0, **how):
        config = settings(epochs=1, seed=seed)
        return Trainer(build(), config, progress=False).fit(scenes["train"], scenes["val"], out=tmp_path / "r", **how)

    fit()
    with pytest.raises(FileExistsError, match="holds a model already; --resume goes on, --force"):
        fit(seed=1)
    history = fit(resume=True).history  # it had finished
    assert len(history) == 1
    for folder in (tmp_path / "r" / "checkpoints").glob("step-*"):
        shutil.rmtree(folder)
    with pytest.raises(FileExistsError, match="holds a model and no checkpoint to go on from; --force"):
        fit(resume=True)
    assert fit(seed=1, force=True).history != history
    code = (
        "import sys; from pathlib import Path; from avse.lock import OwnerLock\n"
        "OwnerLock(Path(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "r" / "checkpoints")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"in use by process {other.pid}: a training runs there"):
            fit(resume=True)
        other.stdin.close()


def test_what_a_kill_left_is_put_right(build, scenes, tmp_path):
    """Between the two renames of a replacement the only checkpoint has another name; half written ones are waste."""
    fit = partial(Trainer(build(), settings(), progress=False).fit, scenes["train"], scenes["val"])
    fit(out=tmp_path / "whole")
    folder = tmp_path / "parts" / "checkpoints"
    shutil.copytree(tmp_path / "whole" / "checkpoints", folder)
    shutil.rmtree(folder / "step-00000009")
    (folder / "step-00000006").rename(folder / ".step-00000006.former")
    (folder / ".step-00000009.ab12.tmp").mkdir()
    trainer = Trainer(build(5), settings(), progress=False)
    steps = []
    real = trainer.step.backward
    trainer.step.backward = lambda batch, epoch: (steps.append(epoch), real(batch, epoch))[1]
    trainer.fit(scenes["train"], scenes["val"], out=tmp_path / "parts", resume=True)
    assert steps == [2, 2, 2] and not list(folder.glob(".*"))
    same_bits(tmp_path / "parts", tmp_path / "whole")


def test_encoders_that_were_held_are_trained_by_the_next_training(build, scenes):
    model = build(image={"frozen": False}, text={"frozen": False})
    Trainer(model, settings(epochs=1, frozen_epochs=1), progress=False).fit(scenes["train"], scenes["val"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Trainer(model, settings(epochs=1), progress=False).fit(scenes["train"], scenes["val"])
    moved = {n.split(".")[0] for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert {"image_encoder", "text_encoder"} <= moved


def test_a_margin_of_nothing_can_be_saved(build, scenes, tmp_path):
    config = settings(epochs=1, objective="hinge", margin=0.0, hard_negative_start_epoch=0)
    result = Trainer(build(), config, progress=False).fit(scenes["train"], scenes["val"], out=tmp_path / "run")
    assert result.finished


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_the_rates_of_a_schedule(build, scenes, schedule):
    config = settings(schedule=schedule, warmup_steps=4, step_epochs=(2,), step_factor=0.5)
    trainer, rates = Trainer(build(), config, progress=False), []
    real = trainer.step.backward

    def backward(batch, epoch):
        rates.append(trainer.optimizer.param_groups[0]["lr"] / config.lr)
        return real(batch, epoch)

    trainer.step.backward = backward
    trainer.fit(scenes["train"], scenes["val"])
    assert len(rates) == 9 and rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    later = {
        "cosine": [0.5 * (1 + np.cos(np.pi * step / 5)) for step in range(5)],
        "step": [1.0, 1.0, 0.5, 0.5, 0.5],
        "constant": [1.0] * 5,
    }
    assert rates[4:] == pytest.approx(later[schedule])


def damage(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_falls_back_to_the_one_before_it(build, scenes, tmp_path, caplog):
    cache, out = tmp_path / "cache", tmp_path / "run"
    Trainer(build(), settings(), cache=cache, progress=False).fit(scenes["train"], scenes["val"], out=out)
    history, weights = (out / "history.json").read_bytes(), (out / "model" / "model.safetensors").read_bytes()
    damage(out / "checkpoints" / "step-00000009" / "state.pt")
    Trainer(build(5), settings(), cache=cache, progress=False).fit(scenes["train"], scenes["val"], out=out, resume=True)
    assert "checkpoint damaged" in caplog.text and "state.pt" in caplog.text
    assert (out / "history.json").read_bytes() == history
    assert (out / "model" / "model.safetensors").read_bytes() == weights


def test_not_finite_is_counted_then_fatal(build, scenes, tmp_path, monkeypatch):
    trainer = Trainer(build(), settings(max_nan_steps=2, epochs=1), cache=tmp_path, progress=False)
    real, calls = trainer.step.matching, []

    def matching(scores, matches, epoch):
        calls.append(0)
        value = real(scores, matches, epoch)
        return value * float("nan") if len(calls) == 2 else value

    monkeypatch.setattr(trainer.step, "matching", matching)
    result = trainer.fit(scenes["train"], scenes["val"])
    assert result.history[0]["skipped_steps"] == 1 and np.isfinite(result.history[0]["loss"])
    trainer = Trainer(build(), settings(max_nan_steps=1, epochs=1), cache=tmp_path, progress=False)
    monkeypatch.setattr(trainer.step, "matching", lambda s, m, e: s.sum() * float("inf"))
    with pytest.raises(TrainingError, match=r"not finite in 2 steps in a row .*train\.lr \(0\.002\)"):
        trainer.fit(scenes["train"], scenes["val"])


def test_nan_tokens_leave_no_trace_in_running_statistics(build, scenes, tmp_path):
    """The forward pass of a step that is left out must not poison the batch norm that later steps read."""
    model = build()
    trainer = Trainer(model, settings(epochs=1), cache=tmp_path, progress=False)
    train, val = open_inputs(model, scenes["train"], cache=tmp_path), open_inputs(model, scenes["val"], cache=tmp_path)
    real, calls = train.texts.batch, []

    def batch(texts, augment=None):
        tokens, mask = real(texts, augment)
        calls.append(0)
        return (tokens * float("nan"), mask) if len(calls) == 2 else (tokens, mask)

    train.texts.batch = batch
    result = trainer.fit(train, val)
    assert result.history[0]["skipped_steps"] == 1
    assert all(bool(torch.isfinite(value).all()) for value in model.state_dict().values())


def test_the_run_says_what_its_figures_stand_with(build, scenes, tmp_path, caplog):
    caplog.set_level("INFO")
    trainer = Trainer(build(), settings(epochs=1, decorrelation_weight=0.1), cache=tmp_path / "c", progress=False)
    trainer.fit(scenes["train"], scenes["val"], out=tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert 0.5 < run["views_overlap"] < 1 and run["steps_an_epoch"] == 3
    assert run["decorrelation_floor"] == pytest.approx(0.005 * (16**2 / 9 - 16) / 16)  # B = 10, D = 16
    for words in ("share", "L_reg cannot fall below", "only 6 validation pictures"):
        assert words in caplog.text
    report = evaluate(AVSE.from_pretrained(tmp_path / "run" / "model"), scenes["test"])
    assert report.meta["seed"] == 0 and report.meta["precision"] == "fp32"


def test_trainers_of_two_precisions_in_one_process(build, scenes, tmp_path):
    for precision in ("fp32", "bf16", "fp32"):
        trainer = Trainer(build(), settings(epochs=1, precision=precision), cache=tmp_path, progress=False)
        assert np.isfinite(trainer.fit(scenes["train"], scenes["val"]).history[0]["loss"])


def test_cut_captions_are_counted(build, scenes, tmp_path, caplog):
    for frozen in (True, False):
        caplog.clear()
        model = build(text={"max_length": 6, "frozen": frozen})
        open_inputs(model, scenes["val"], cache=tmp_path)
        assert "are longer than 6 tokens and are cut" in caplog.text


def test_changed_pictures_are_another_run(build, scenes, tmp_path):
    make_scenes(tmp_path / "s", count=24, size=64, seed=1)
    train, val = (load_dataset(tmp_path / "s", split=s) for s in ("train", "val"))
    Trainer(build(), settings(epochs=1), progress=False).fit(train, val, out=tmp_path / "run")
    path = train.image_paths[0]
    path.write_bytes(train.image_paths[1].read_bytes())
    with pytest.raises(TrainingError, match="another pictures"):
        Trainer(build(), settings(epochs=1), progress=False).fit(train, val, out=tmp_path / "run", resume=True)


def test_first_epoch_all_negatives_then_the_hardest(build, scenes, tmp_path, monkeypatch):
    scores, matches, seen = torch.randn(6, 6), torch.eye(6, dtype=torch.bool), []
    config = settings(objective="hinge", hard_negative_start_epoch=2, infonce_warmup_epochs=1, score_scale="sum")
    trainer = Trainer(build(), config, cache=tmp_path, progress=False)
    real = trainer.step.matching

    def matching(real_scores, real_matches, epoch):
        seen.append((epoch, float(real(scores, matches, epoch))))
        return real(real_scores, real_matches, epoch)

    monkeypatch.setattr(trainer.step, "matching", matching)
    trainer.fit(scenes["train"], scenes["val"])
    own = scores.diagonal()
    columns, rows = (0.2 + scores - own[:, None]).clamp(min=0), (0.2 + scores - own[None, :]).clamp(min=0)
    columns.fill_diagonal_(0), rows.fill_diagonal_(0)
    expected = [
        float(trainer.step.infonce(scores, matches)),
        float(columns.sum() + rows.sum()),
        float(columns.max(1).values.sum() + rows.max(0).values.sum()),
    ]
    for epoch, value in seen:
        assert value == pytest.approx(expected[epoch], rel=1e-5)
    assert {epoch for epoch, _ in seen} == {0, 1, 2}


@pytest.mark.parametrize("epoch_of", ["images", "pairs"])
def test_an_epoch_is_each_image_or_each_pair_once(build, scenes, epoch_of):
    model, data = build(), scenes["train"]
    feed = PairFeed(open_inputs(model, data), model, settings(epoch_of=epoch_of, batch_size=7))
    batches = [fed.batch for fed in feed.epoch(0)]
    images = [i for batch in batches for i in batch.image_ids]
    texts = [text for batch in batches for text in batch.captions]
    assert len(batches) == feed.steps
    assert all(text in data.captions_of(i) for i, text in zip(images, texts))
    if epoch_of == "images":
        assert sorted(images) == list(range(data.num_images))
        assert set(texts) != {text for fed in feed.epoch(1) for text in fed.batch.captions}
    else:
        assert sorted(texts) == sorted(data.captions)
    sizes = [len(batch.captions) for batch in batches]
    assert max(sizes) <= 7 and max(sizes) - min(sizes) <= 1


def test_fine_tuning_moves_the_encoders_at_their_own_rate(build, scenes):
    model = build(image={"frozen": False, "sampling_stage": "input"}, text={"frozen": False})
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = settings(epochs=1, encoder_lr=1e-4, word_augment=True, image_augment=True, learn_temperature=True)
    config = config.model_copy(update={"objective": "infonce"})
    trainer = Trainer(model, config, progress=False)
    result = trainer.fit(scenes["train"], scenes["val"])
    assert np.isfinite(result.history[0]["loss"])
    assert result.history[0]["lr"][0] / result.history[0]["lr"][1] == pytest.approx(config.lr / config.encoder_lr)
    after = dict(model.named_parameters())
    moved = {n.split(".")[0] for n in before if not torch.equal(before[n], after[n])}
    assert moved == {"image_encoder", "text_encoder", "image_head", "text_head"}


def test_what_cannot_be_is_refused(build, scenes, tmp_path):
    with pytest.raises(FeatureError, match="image_augment"):
        Trainer(build(), settings(image_augment=True), cache=tmp_path, progress=False).fit(
            scenes["train"], scenes["val"]
        )
    with pytest.raises(FeatureError, match="sampling_stage"):
        Trainer(build(image={"sampling_stage": "input"}), settings(), cache=tmp_path, progress=False).fit(
            scenes["train"], scenes["val"]
        )
    with pytest.raises(TrainingError, match="word_augment is true, but the text encoder is frozen"):
        Trainer(build(), settings(word_augment=True))
    with pytest.raises(TrainingError, match="1 training picture"):
        Trainer(build(), settings(), progress=False).fit(scenes["train"].subset([0]), scenes["val"])


def test_an_unreadable_picture_is_listed_and_left_out(build, tmp_path):
    make_scenes(tmp_path / "s", count=24, size=64, seed=1)
    bad = load_dataset(tmp_path / "s", split="train").image_paths[0]
    data = bad.read_bytes()
    bad.write_bytes(data[: len(data) // 2])
    train, val = (load_dataset(tmp_path / "s", split=s, check_images=False) for s in ("train", "val"))
    for cache in (None, tmp_path / "cache"):
        result = Trainer(build(), settings(epochs=1), cache=cache, progress=False).fit(
            train, val, out=tmp_path / f"run{cache is None}"
        )
        assert [Path(s.name).name for s in result.skipped] == [bad.name]
        run = json.loads((tmp_path / f"run{cache is None}" / "run.json").read_text())
        assert bad.name in run["skipped"][0][0]


def test_pixels_and_cached_grids_train_alike(build, scenes, tmp_path):
    losses = []
    for cache in (None, tmp_path / "cache"):
        trainer = Trainer(build(), settings(epochs=1), cache=cache, progress=False)
        losses.append(trainer.fit(scenes["train"], scenes["val"]).history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)  # float16 grids


def test_a_part_of_all_equals_the_split_itself(build, scenes, tmp_path):
    model = build()
    everything = load_dataset(scenes["train"].root, split="all")
    whole = open_inputs(model, everything, cache=tmp_path)
    part = select(whole, scenes["test"])
    own = open_inputs(model, scenes["test"], cache=tmp_path)
    rows = [2, 0, 1]
    assert torch.equal(part.images.batch(rows), own.images.batch(rows))
    assert (
        evaluate(model, scenes["test"], inputs=part).to_dict() == evaluate(model, scenes["test"], inputs=own).to_dict()
    )


def test_early_stopping_counts_epochs_without_a_better_validation(build, scenes, monkeypatch):
    rsums = [10.0, 30.0, 30.0, 29.0, 40.0]
    trainer = Trainer(build(), settings(epochs=5, patience=2), progress=False)
    entry_of = trainer._entry

    def entry(report):
        found = entry_of(report)
        found["val"]["rsum"] = rsums[found["epoch"]]
        return found

    monkeypatch.setattr(trainer, "_entry", entry)
    monkeypatch.setattr(trainer, "_keep", lambda entry, rsum, keep=trainer._keep: keep(entry, entry["val"]["rsum"]))
    result = trainer.fit(scenes["train"], scenes["val"])
    assert len(result.history) == 4 and result.best_rsum == 30.0 and result.finished  # a tie is not better


def test_encoders_move_after_their_frozen_epochs(build, scenes):
    model = build(image={"frozen": False}, text={"frozen": False})
    start = {name: value.clone() for name, value in model.state_dict().items()}
    moved = []

    def on_epoch(entry):
        changed = {n.split(".")[0] for n, value in model.state_dict().items() if not torch.equal(value, start[n])}
        moved.append((entry["frozen"], changed & {"image_encoder", "text_encoder"}, "text_head" in changed))

    Trainer(model, settings(frozen_epochs=2), progress=False).fit(scenes["train"], scenes["val"], on_epoch=on_epoch)
    assert moved == [(True, set(), True), (True, set(), True), (False, {"image_encoder", "text_encoder"}, True)]


def test_a_collapse_is_said_and_all_negatives_are_taken_until_it_is_over(build, scenes, tmp_path, monkeypatch):
    """One vector for every picture, planted: the real loop, watch, hinge and a run that goes on."""
    monkeypatch.setattr("avse.trainer.watch.PATIENCE", (3, 3))
    config = settings(
        objective="hinge", hard_negative_start_epoch=0, score_scale="sum", on_collapse="all_negatives", epochs=4
    )
    config = config.model_copy(update={"image_augment": False, "checkpoint_minutes": 0.0})
    model = build()
    trainer, hardest = Trainer(model, config, progress=False), []
    real = trainer.step.backward

    def backward(batch, epoch):
        hardest.append(trainer.step.hinge.hardest)
        with torch.no_grad():
            model.image_head.project.weight.zero_()
            model.image_head.project.bias.fill_(1.0)
        return real(batch, epoch)

    monkeypatch.setattr(trainer.step, "backward", backward)
    result = trainer.fit(scenes["train"], scenes["val"], out=tmp_path / "run")
    assert hardest[:3] == [True] * 3 and hardest[3:9] == [False] * 6  # twice the patience
    said = [entry["collapse"] for entry in result.history if entry["collapse"]]
    assert "all negatives for the next 6 steps" in said[0]


def test_tensorboard_has_the_steps_and_the_epochs(build, scenes, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = Trainer(build(), settings(tensorboard=True), progress=False).fit(
        scenes["train"], scenes["val"], out=tmp_path / "run"
    )
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(9))
    rsums = [event.value for event in events.Scalars("val/rsum")]
    assert rsums == pytest.approx([entry["val"]["rsum"] for entry in result.history])


STATES = {
    "fp16's scale": ({}, {"precision": "fp16"}),
    "InfoNCE first, a temperature that is learnt": (
        {},
        {"objective": "hinge", "infonce_warmup_epochs": 1, "learn_temperature": True, "patience": 1},
    ),
    "groups that choose": ({"sampling": "groups"}, {"size_augment": 0.3}),
    "all negatives after a collapse": (
        {},
        {"objective": "hinge", "hard_negative_start_epoch": 0, "on_collapse": "all_negatives", "lr": 0.3},
    ),
    "every pair, padding counted": (
        {"masked_batch_norm": False},
        {"epoch_of": "pairs", "decorrelation_weight": 0.1, "batch_size": 35},
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_whatever_has_a_state_goes_on_with_it(build, scenes, tmp_path, monkeypatch, name):
    monkeypatch.setattr("avse.trainer.watch.PATIENCE", (2, 2))
    monkeypatch.setattr("avse.trainer.watch.LOW_SPREAD", 1.0)
    monkeypatch.setattr("avse.trainer.watch.TOLERANCE", 100.0)
    model, train = STATES[name]
    config = settings(epochs=2, checkpoint_minutes=0.0, **train)

    def fit(out, stops_at=None, **how):
        trainer = Trainer(
            build(seed=0 if out == "whole" or stops_at == 1 else 7, **model),
            config,
            cache=tmp_path / "cache",
            progress=False,
        )
        real = trainer.step.backward

        def backward(batch, epoch):
            if trainer.state.step == stops_at:
                raise InterruptedError
            return real(batch, epoch)

        trainer.step.backward = backward
        return trainer.fit(scenes["train"], scenes["val"], out=tmp_path / out, **how)

    whole = fit("whole")
    for stop in (1, 4):
        with pytest.raises(InterruptedError):
            fit("parts", stop, resume=stop > 1)
    fit("parts", resume=True)
    same_bits(tmp_path / "parts", tmp_path / "whole")
    if "collapse" in name:
        assert any("all negatives for the next" in str(entry["collapse"]) for entry in whole.history)


RUN = """
import json, resource, sys, time, torch
from avse.config import *
from avse.data import load_dataset
from avse.model import AVSE
from avse.trainer import Trainer
vit, bert, data, out, extra = sys.argv[1:]
torch.manual_seed(0)
model = AVSE(ModelConfig(image_encoder=ImageEncoderConfig(source=vit, frozen=False, sampling_stage="input"),
                         text_encoder=TextEncoderConfig(source=bert, frozen=False), embed_dim=16, block_width=8))
changes = {"epochs": 3, "batch_size": 3, "lr": 2e-3, "objective": "hinge", "size_augment": 0.2, "word_augment": True,
           "image_augment": True, "color_augment": 0.2, "decorrelation_weight": 0.1,
           "frozen_epochs": 1, "chunk_size": 2, "gradient_checkpointing": True, "checkpoint_minutes": 0,
           "warmup_steps": 3, **json.loads(extra)}
limit, slow = changes.pop("limit", None), changes.pop("slow", None)
trainer = Trainer(model.to(changes.pop("device", "cpu")), TrainConfig(**changes), progress=False)
if slow == "a validation":  # long enough for a signal to come in its middle
    encode = model.embed_tokens
    model.embed_tokens = lambda *texts: (time.sleep(0.5 * (not model.training)), encode(*texts))[1]
def on_epoch(entry):
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
train, val = (load_dataset(data, split=split) for split in ("train", "val"))
result = trainer.fit(train, val, out=out, resume=True, on_epoch=on_epoch)
print("finished" if result.finished else "stopped")
"""


@pytest.fixture
def launch(tiny_vit_folder, tiny_bert_folder, scenes):
    return partial(start_run, tiny_vit_folder, tiny_bert_folder, scenes)


def start_run(vit, bert, scenes, out, **changes):
    folders = map(str, (vit, bert, scenes["train"].root, out))
    return warm.Run(RUN, *folders, json.dumps(changes))


@pytest.fixture(scope="module")
def whole(tiny_vit_folder, tiny_bert_folder, scenes, tmp_path_factory):
    """The run that nothing stops."""
    out = tmp_path_factory.mktemp("whole") / "run"
    ends(start_run(tiny_vit_folder, tiny_bert_folder, scenes, out))
    return out


def newest_step(out):
    return max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)


def until(process, condition):
    """Wait for what a run does; an error where it ends, or nothing happens, first."""
    late = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < late
        time.sleep(0.002)


def ends(process, code=0):
    out, err = process.communicate()
    assert process.returncode == code, err[-2000:]
    return out, err


def same_bits(a, b):
    for name in ("history.json", "model/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.parametrize("kills", [2, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_any_step_and_resumed_equals_never_stopped(launch, whole, kills, tmp_path):
    """Dropout, crops, colours, words, views, chunks, frozen epochs: all that is random or has a state is on."""
    random, total = np.random.default_rng(kills), 3 * 10  # epochs, steps of each
    run = tmp_path / "parts"
    for step in sorted(random.choice(np.arange(1, total - 8), kills, replace=False)):
        wanted = max(step, newest_step(run) + 1)
        process = launch(run)
        until(process, lambda wanted=wanted: newest_step(run) >= wanted)
        time.sleep(float(random.uniform(0, 0.1)))  # in a step, in a save, in a validation
        process.kill()
        process.communicate()
        assert newest_step(run) < total and not (run / "model").exists()
    ends(launch(run))
    same_bits(run, whole)
    pieces = json.loads((run / "run.json").read_text())["pieces"]
    assert [piece["end"] for piece in pieces] == ["killed"] * kills + ["finished"]


def test_sigterm_saves_and_ends_well_in_an_epoch_or_in_validation(launch, whole, tmp_path):
    run = tmp_path / "parts"
    for step, place in ((4, "a step"), (20, "a validation")):
        process = launch(run, checkpoint_minutes=0, slow=place)
        until(process, lambda step=step: newest_step(run) >= step)
        process.send_signal(signal.SIGTERM)
        out, err = ends(process)
        assert "stopped" in out and "SIGTERM" in err and newest_step(run) < 30
        told = json.loads((run / "run.json").read_text())
        assert told["status"] == "stopped" and told["pieces"][-1]["end"] == "stopped"
    assert told["last_epoch"] == 0 and newest_step(run) == 20  # the second epoch's steps are done, not its validation
    ends(launch(run))
    same_bits(run, whole)


def test_a_disk_that_really_refuses_leaves_the_former_checkpoint(launch, whole, tmp_path):
    """The kernel refuses to write files above a limit, as a full disk does: no function is replaced."""
    process = launch(tmp_path / "parts", limit=20_000)
    _, err = ends(process, 1)
    assert "could not be written" in err and "is whole: make room and go on with --resume" in err
    assert not list((tmp_path / "parts").rglob("*.tmp"))
    ends(launch(tmp_path / "parts"))
    same_bits(tmp_path / "parts", whole)
