"""Batches: equal whatever the number of processes, streamed from shards, resumed to the bit; what is refused."""

import json
import os
import shutil

import numpy as np
import pytest
import torch

from avse import parallel
from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, TrainConfig
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.data.sharding import write_shards
from avse.data.shards import PairShards
from avse.inputs import open_inputs
from avse.model import AVSE
from avse.trainer import Trainer, TrainingError
from avse.trainer.feed import PairFeed, ShardFeed


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed")
    make_scenes(folder / "scenes", count=40, size=48, seed=0)
    splits = {split: load_dataset(folder / "scenes", split=split) for split in ("train", "val", "test")}
    write_shards(splits, folder / "shards", samples_per_shard=7, progress=False)
    return folder / "scenes", folder / "shards"


@pytest.fixture
def build(tiny_vit_folder, tiny_bert_folder):
    def make(seed=0):
        torch.manual_seed(seed)
        config = ModelConfig(
            image_encoder=ImageEncoderConfig(source=str(tiny_vit_folder), frozen=False),
            text_encoder=TextEncoderConfig(source=str(tiny_bert_folder), frozen=False),
            embed_dim=16,
            block_width=8,
        )
        return AVSE(config)

    return make


CONFIG = TrainConfig(epochs=2, batch_size=7, image_augment=True, color_augment=0.3, word_augment=True, size_augment=0.3)
TENSORS = ("images", "texts", "mask", "views")


def same(a, b):
    assert a.captions == b.captions and a.image_ids == b.image_ids
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


@pytest.mark.parametrize("kind", ["pairs", "shards"])
def test_a_feed_that_goes_on_gives_the_batches_of_one_that_did_not_stop(build, folders, kind):
    model = build().train()
    if kind == "pairs":
        train = load_dataset(folders[0], split="train")
        data = open_inputs(model, train, augment=lambda image, random: image.rotate(90 * int(random.integers(4))))
        feed = PairFeed(data, model, CONFIG)
    else:
        feed = ShardFeed(PairShards.open(folders[1]), model, CONFIG, buffer=5)
    for epoch in (0, 1):
        whole = list(feed.epoch(epoch))
        assert len(whole) == feed.steps
        for start in range(1, feed.steps):
            states = whole[start - 1].states
            tail = list(feed.epoch(epoch, start, states))
            assert len(tail) == feed.steps - start
            for one, other in zip(tail, whole[start:]):
                same(one.batch, other.batch)


def test_processes_share_out_the_batch_of_one(build, folders, monkeypatch):
    model = build().train()
    data = open_inputs(model, load_dataset(folders[0], split="train"))
    whole = list(PairFeed(data, model, CONFIG).epoch(1))
    monkeypatch.setattr(parallel, "world", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        parts.append(list(PairFeed(data, model, CONFIG).epoch(1)))
    for fed, *shares in zip(whole, *parts):
        batch, shares = fed.batch, [share.batch for share in shares]
        assert max(len(s.captions) for s in shares) - min(len(s.captions) for s in shares) <= 1
        assert [text for s in shares for text in s.captions] == batch.captions
        for name in TENSORS:
            assert torch.equal(torch.cat([getattr(s, name) for s in shares]), getattr(batch, name)), name
    assert parallel.own_rows(7) == slice(5, 7)  # of the last of three
    with pytest.raises(ValueError, match="batches of 2 pairs cannot be divided among 3 processes: raise train.batch"):
        PairFeed(data, model, CONFIG.model_copy(update={"batch_size": 2}))


def test_shards_give_every_picture_once_an_epoch_to_all_processes_together(build, folders, monkeypatch):
    model, shards = build().train(), PairShards.open(folders[1])
    data = load_dataset(folders[0], split="train")
    texts = {data.image_ids[i]: data.captions_of(i) for i in range(data.num_images)}
    monkeypatch.setattr(parallel, "world", lambda: 3)
    seen, steps = [], set()
    for rank in range(3):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        feed = ShardFeed(shards, model, CONFIG, buffer=4)
        fed = list(feed.epoch(0))
        steps.add(len(fed))
        seen += [(i, text) for one in fed for i, text in zip(one.batch.image_ids, one.batch.captions)]
    assert steps == {feed.steps} and len(seen) == data.num_images == len({key for key, _ in seen})
    all_texts = {text for captions in texts.values() for text in captions}
    assert {text for _, text in seen} <= all_texts


def test_training_on_shards_equals_itself_when_it_stops_and_goes_on(build, folders, tmp_path):
    shards, val = PairShards.open(folders[1]), load_dataset(folders[1], split="val")
    config = CONFIG.model_copy(update={"checkpoint_minutes": 0.0})
    whole = Trainer(build(), config, progress=False, shuffle_buffer=6).fit(shards, val, out=tmp_path / "whole")
    assert whole.finished and np.isfinite(whole.history[-1]["loss"])

    class Stop(Exception):
        pass

    trainer = Trainer(build(), config, progress=False, shuffle_buffer=6)
    real, steps = trainer.step.backward, []

    def stop(batch, epoch):
        steps.append(epoch)
        if len(steps) == 4:
            raise Stop
        return real(batch, epoch)

    trainer.step.backward = stop
    with pytest.raises(Stop):
        trainer.fit(shards, val, out=tmp_path / "parts")
    with pytest.raises(TrainingError, match="another buffer: 6 there, 9 now"):
        Trainer(build(), config, progress=False, shuffle_buffer=9).fit(shards, val, out=tmp_path / "parts", resume=True)
    Trainer(build(3), config, progress=False, shuffle_buffer=6).fit(shards, val, out=tmp_path / "parts", resume=True)
    for name in ("history.json", "model/model.safetensors"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_unreadable_picture_of_a_shard_is_listed(build, folders, tmp_path):
    shutil.copytree(folders[1], tmp_path / "shards")
    shard = sorted((tmp_path / "shards").glob("train-*.tar"))[0]
    data = bytearray(shard.read_bytes())
    place = data.index(b"\x89PNG") if b"\x89PNG" in data else data.index(b"\xff\xd8\xff")
    data[place : place + 4] = b"nope"
    stamp = shard.stat()
    shard.write_bytes(data)
    os.utime(shard, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    shards, val = PairShards.open(tmp_path / "shards"), load_dataset(tmp_path / "shards", split="val")
    config = TrainConfig(epochs=1, batch_size=8)
    result = Trainer(build(), config, progress=False).fit(shards, val, out=tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert result.finished and len(run["unreadable"]) == 1
    with pytest.raises(ValueError, match="train.epoch_of=pairs needs random access"):
        Trainer(build(), TrainConfig(epoch_of="pairs"), progress=False).fit(shards, val)
