"""The watch: spread against every pair, no alarm at healthy starts, an alarm in a planted collapse, chance, NaN."""

import json
from math import comb

import numpy as np
import pytest
import torch

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig
from avse.data import load_dataset
from avse.data.scenes import make_scenes
from avse.inputs import open_inputs
from avse.losses import HardNegativeTripletLoss, true_matches
from avse.model import AVSE
from avse.scoring import aeom
from avse.trainer.watch import FALLBACK, GALLERY, LOW_SPREAD, NO_SPREAD, CollapseWatch, NanPolicy, _at_least, spread

MARGIN, BATCH = 0.2, 32
PLATEAU = 2 * BATCH * MARGIN


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(seed).normal(size=shape)), dim=-1)


def watch(**changes):
    return CollapseWatch(**{"margin": MARGIN, "steps_an_epoch": 30, **changes})


def feed(watch, steps, hinge=PLATEAU, hardest=True, images=0.5, texts=0.5):
    told = []
    for _ in range(steps):
        said = watch.step(hinge, batch_size=BATCH, hardest=hardest, spread_images=images, spread_texts=texts)
        told += [said] if said else []
    return told


def test_spread_is_one_minus_the_mean_cosine_of_every_pair():
    blocks = unit(7, 3, 5)
    pairs = [(a[p] @ b[p]).item() for p in range(3) for a in blocks for b in blocks]
    assert spread(blocks).item() == pytest.approx(1 - np.mean(pairs), abs=1e-6)
    assert spread(blocks[:1].expand(6, 3, 5)).item() == pytest.approx(0, abs=1e-6)
    assert not spread(blocks.requires_grad_()).requires_grad


def test_the_plateau_is_what_equal_scores_give():
    scores, matches = torch.full((BATCH, BATCH), 0.7), torch.eye(BATCH, dtype=torch.bool)
    assert HardNegativeTripletLoss(MARGIN)(scores, matches).item() == pytest.approx(PLATEAU, rel=1e-6)


def test_a_plateau_of_parallel_vectors_is_told_once_a_phase():
    seen = watch()
    assert feed(seen, 29, texts=0.004) == [] and not seen.all_negatives
    [said] = feed(seen, 100, texts=0.004)
    for part in ("30 steps", "12.8 stays at 2·B·margin = 12.8", "texts of 0.004 (limit 0.02)", "lower train.lr"):
        assert part in said
    for setting in ("hard_negative_start_epoch", "infonce_warmup_epochs", "on_collapse=all_negatives"):
        assert f"train.{setting}" in said
    assert feed(seen, 100, hardest=False) == []
    assert len(feed(seen, 100, images=0.004)) == 1  # a new phase of hardest negatives


@pytest.mark.parametrize(
    ("what", "figures"),
    [
        ("scores tell pairs apart, if wrongly", {"hinge": 1.2 * PLATEAU, "texts": 0.006}),
        ("learning", {"hinge": 0.8 * PLATEAU, "texts": 0.006}),
        ("vectors that differ", {"texts": 0.03}),
        ("all negatives say nothing at their plateau", {"hinge": PLATEAU, "hardest": False, "texts": 0.006}),
        ("InfoNCE has no plateau", {"hinge": None, "texts": 0.006}),
    ],
)
def test_no_alarm(what, figures):
    assert feed(watch(), 500, **figures) == [], what


def test_no_spread_is_an_alarm_under_any_objective():
    for figures in ({"hinge": None}, {"hinge": 31 * PLATEAU, "hardest": False}, {"hinge": 1.5 * PLATEAU}):
        [said] = feed(watch(), 100, images=2e-4, **figures)
        assert "spread of the images 0.0002 (limit 0.001" in said
    assert "on_collapse" not in feed(watch(), 100, hinge=None, images=2e-4)[0]


def test_vectors_that_grow_apart_from_nearly_one_are_no_collapse():
    seen = watch()
    assert not [said for i in range(1, 200) for said in feed(seen, 1, images=min(0.5, 1e-5 * 1.1**i))]


def test_the_sum_over_blocks_is_judged_by_one_blocks_score():
    assert feed(watch(), 100, hinge=1.12 * PLATEAU, texts=0.004) == []
    assert len(feed(watch(score_scale=4), 100, hinge=1.12 * PLATEAU, texts=0.004)) == 1


def test_patience_follows_the_epoch_within_limits():
    assert [watch(steps_an_epoch=n).patience for n in (1, 100, 10_000)] == [30, 100, 200]


def test_the_fallback_ends_doubles_and_survives_a_resume():
    def regime(seen, steps):
        """One letter a step; a state that goes through JSON takes over after any step."""
        letters = []
        for _ in range(steps):
            hardest = not seen.all_negatives
            letters.append("h" if hardest else "a")
            feed(seen, 1, hinge=PLATEAU if hardest else 31 * PLATEAU, hardest=hardest, texts=0.004)
            state = json.loads(json.dumps(seen.state(), allow_nan=False))
            seen = watch(fallback=True)
            seen.load(state)
        return "".join(letters)

    first = FALLBACK * 30
    expected = "h" * 30 + "a" * first + "h" * 30 + "a" * 2 * first + "h" * 10
    assert regime(watch(fallback=True), len(expected)) == expected
    whole = watch(fallback=True)
    [said] = feed(whole, 30, texts=0.004)
    assert f"takes all negatives for the next {first} steps" in said and whole.all_negatives


def test_chance_is_the_binomial_tail():
    for hits, trials, p in ((0, 9, 0.2), (3, 60, 1 / 60), (12, 249, 1 / 60), (9, 9, 0.5)):
        exact = sum(comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1))
        assert _at_least(hits, trials, p) == pytest.approx(exact, abs=1e-12)


def test_recalls_at_chance_are_told_from_the_second_epoch_on():
    gallery = {"num_images": 60, "num_texts": 249}
    guessed = {"i2t": {1: 100 / 60, 10: 1000 / 60}, "t2i": {1: 500 / 249, 10: 4000 / 249}}
    seen = watch()
    assert seen.validated(0, **guessed, **gallery) is None
    said = seen.validated(1, **guessed, **gallery)
    assert "R@10 i2t 16.67, t2i 16.06, guessing gives 16.67" in said
    assert seen.validated(2, **guessed, **gallery) is None
    for found in ({1: 1200 / 249, 10: 16.0}, {1: 1.6, 10: 7000 / 249}):  # 12 of 249, or 70 in ten, are no chance
        assert watch().validated(5, i2t={1: 0, 10: 0}, t2i=found, **gallery) is None
    nothing = {"i2t": {1: 0, 10: 0}, "t2i": {1: 0, 10: 0}}
    assert watch().validated(5, **nothing, **gallery)  # equal scores: every tie is lost
    assert watch().validated(5, **nothing, num_images=GALLERY - 1, num_texts=249) is None


def test_nan_policy_counts_and_says_where():
    policy = NanPolicy(2)
    assert [policy.may_go_on(finite) for finite in (True, False, False, True, False)] == [True] * 5
    assert policy.skipped == 3
    policy.start_epoch()
    again = NanPolicy(2)
    again.load(json.loads(json.dumps(policy.state())))
    assert again.may_go_on(False) and not again.may_go_on(False) and again.skipped == 2
    said = again.message(4, 17, 2e-3, 5e-5)
    assert said.startswith("loss or gradient not finite in 3 steps in a row (epoch 4, step 17); lower train.lr (0.002)")
    assert not NanPolicy(0).may_go_on(False)


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch") / "scenes"
    make_scenes(folder, count=96, size=64, seed=0)
    return load_dataset(folder, split="train")


@pytest.fixture
def collapsing(train, tiny_vit_folder, tiny_bert_folder, tmp_path):
    """A real training by hand: AVSE on made scenes, hinge, Adam; what was told when, and the spreads of every step."""

    def run(steps, lr, fallback=False, hardest=True, blocks=(64, 32), seed=0):
        torch.manual_seed(seed)
        sources = (ImageEncoderConfig(source=str(tiny_vit_folder)), TextEncoderConfig(source=str(tiny_bert_folder)))
        model = AVSE(
            ModelConfig(image_encoder=sources[0], text_encoder=sources[1], embed_dim=blocks[0], block_width=blocks[1])
        ).train()
        inputs = open_inputs(model, train, cache=tmp_path)
        own = np.searchsorted(train.text_to_image, np.arange(train.num_images))  # an image's first caption
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
        seen, hinge = watch(fallback=fallback), HardNegativeTripletLoss(MARGIN)
        generator, told, spreads = torch.Generator().manual_seed(0), [], []
        for step in range(steps):
            images = torch.randperm(train.num_images, generator=generator)[:BATCH].tolist()
            texts = [train.captions[own[i]] for i in images]
            views = model.sampling(model.image_encoder.grid, BATCH, generator).to(model.device)
            image_blocks = model.embed_features(inputs.images.batch(images), None, views)
            text_blocks = model.embed_token_features(*inputs.texts.batch(texts))
            hinge.hardest = hardest and not seen.all_negatives
            scores = aeom(image_blocks, text_blocks) / model.num_text_blocks
            loss = hinge(scores, true_matches(images, texts))
            spreads.append((spread(image_blocks).item(), spread(text_blocks).item()))
            said = seen.step(
                loss.item(),
                batch_size=BATCH,
                hardest=hinge.hardest,
                spread_images=spreads[-1][0],
                spread_texts=spreads[-1][1],
            )
            told += [(step, said)] if said else []
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return told, spreads

    return run


@pytest.mark.parametrize("blocks", [(16, 8), pytest.param((64, 32), marks=pytest.mark.slow)])
def test_a_real_start_is_no_alarm_though_its_vectors_are_nearly_parallel(collapsing, blocks):
    told, spreads = collapsing(60, lr=5e-4, hardest=False, blocks=blocks)
    assert told == [] and spreads[0][0] < 0.05


def test_a_real_collapse_is_told_and_the_fallback_pulls_it_apart(collapsing):
    told, spreads = collapsing(90, lr=0.05, fallback=True)
    [(step, said)] = told
    assert "stays at 2·B·margin = 12.8" in said and "all negatives for the next 60 steps" in said
    assert min(spreads[0]) > NO_SPREAD and min(spreads[step]) < LOW_SPREAD
    assert max(min(both) for both in spreads[step:]) > 20 * min(spreads[step])
