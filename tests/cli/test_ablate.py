"""`avse ablate`: the rows are the paper's, the figures are those of the trainings, and nothing is trained twice."""

from __future__ import annotations

import json

import numpy as np
import pytest

from avse.ablate import paper_variants, variants_over, views_overlap
from avse.config import ConfigError, ModelConfig, change, load_recipe
from avse.metrics import Ranks, paired_difference, report_from_ranks


def ranks_of(folder):
    values = json.loads((folder / "result.json").read_text())["plain"]
    return Ranks(**{name: np.array(column, np.int64) for name, column in values.items()})


def test_the_papers_rows_leave_out_one_part_each():
    recipe = load_recipe("ablation")
    rows = {f"{v.group}: {v.name}": change(recipe, v.changes) for v in paper_variants(recipe)}
    parts = {name: (r.model.num_views, r.model.num_image_blocks, r.model.num_text_blocks) for name, r in rows.items()}
    weight = {name: r.train.decorrelation_weight for name, r in rows.items()}
    assert (parts["parts: one view, cosine"], weight["parts: one view, cosine"]) == ((1, 1, 1), 0)
    assert (parts["parts: + views"], weight["parts: + views"]) == ((2, 2, 1), 0)
    assert (parts["parts: + views, AEOM"], weight["parts: + views, AEOM"]) == ((2, 4, 2), 0)
    assert rows["parts: L_reg official"].train.decorrelation_form == "official"
    assert {r.model.num_views for n, r in rows.items() if n.startswith("views")} == {1, 3, 4}
    assert {r.model.block_width for n, r in rows.items() if n.startswith("block")} == {256, 64, 32}
    assert rows["sampling: none: every cell in each view"].model.keep == 1
    assert rows["objective: infonce"].train.score_scale == "mean"
    assert all(changed.model != recipe.model or changed.train != recipe.train for changed in rows.values())
    assert len({r.model_dump_json() for r in rows.values()}) == len(rows)
    with pytest.raises(ConfigError, match="has 1, 128 of 256 and 1"):
        paper_variants(change(recipe, ["model.num_views=1"]))


@pytest.mark.parametrize("text", ["model.keep", "kep=0.3", "model.keep=0.3,,0.5", "=1,2"])
def test_over_of_another_form_is_refused(text):
    with pytest.raises(ConfigError, match=r"expected section.key=a,b,c"):
        variants_over([text])


def test_over_knows_whose_a_name_is():
    assert [v.changes for v in variants_over(["keep=0.3,0.5", "lr=1e-4"])] == [
        ("model.keep=0.3",),
        ("model.keep=0.5",),
        ("train.lr=1e-4",),
    ]


def test_overlap_of_views():
    assert views_overlap(ModelConfig(num_views=1), (7, 7)) is None
    assert views_overlap(ModelConfig(keep=1.0), (7, 7)) == 1
    # Two random sets of 24 of 49 cells share 24/49 of their cells on average.
    assert views_overlap(ModelConfig(keep=0.5, sampling="uniform"), (7, 7)) == pytest.approx(24 / 49, abs=0.01)


def test_the_table_is_made_of_its_trainings_and_finished_ones_are_read(avse, scenes, tiny, tmp_path, monkeypatch):
    out = tmp_path / "ablation"
    words = ("ablate", scenes, "--out", out, "--cache", tmp_path / "cache", *tiny, "--set", "train.epochs=1")
    words = (*words, "--over", "model.num_views=1,3", "--seeds", 2)
    said = avse(*words, "--json")
    assert said.code == 0
    [table] = said.json
    assert json.loads((out / "ablation.json").read_text()) == table
    full, other = ([ranks_of(out / f"{name}-seed{seed}") for seed in (0, 1)] for name in ("full", "model.num-views-3"))
    expected = paired_difference(full, other)
    found = table["differences"]["full-model.num_views: 3"]
    assert {key: found[key] for key in expected} == expected
    rsums = [report_from_ranks(ranks).rsum for ranks in other]
    assert table["systems"]["model.num_views: 3"]["rsum"]["seeds"] == rsums
    assert table["overlap"]["model.num_views: 1"] is None and 0.5 < table["overlap"]["full"] <= 1

    (out / "model.num-views-3-seed1" / "result.json").unlink()  # as if it had been killed before that one
    trained = []
    from avse.experiment import Trainer

    fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a, **k: (trained.append(self.config.seed), fit(self, *a, **k))[1])
    said = avse(*words)
    assert said.code == 0 and trained == [1]
    lines = said.out.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == ["full", "model.num_views: 1", "model.num_views: 3"]
    again = json.loads((out / "ablation.json").read_text())
    for rows in (table["systems"], again["systems"]):
        for row in rows.values():
            del row["training_seconds"]
    assert again == table  # the same seed, the same figures
    said = avse(*words, "--set", "train.lr=1e-4")
    assert said.code == 1 and len(trained) == 1 and "holds the row 'full' with other settings" in said.err
    said = avse(*words[:-1], 1, "--set", "train.lr=1e-4", "--force")
    assert said.code == 0 and len(trained) == 4  # other settings: every row anew


def test_regions_can_be_ablated(avse, tiny_bert_folder, tmp_path):
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        np.save(tmp_path / f"{split}_ims.npy", random.standard_normal((count, 6, 10)).astype(np.float32))
        (tmp_path / f"{split}_caps.txt").write_text("\n".join(f"a red dog {i}" for i in range(5 * count)))
    settings = {
        "model.image_encoder.source": "regions",
        "model.image_encoder.width": 10,
        "model.image_encoder.num_regions": 6,
        "model.sampling": "groups",
        "model.text_encoder.source": tiny_bert_folder,
        "model.embed_dim": 16,
        "model.block_width": 8,
        "train.epochs": 1,
    }
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    said = avse("ablate", tmp_path, "--out", tmp_path / "out", "--seeds", 1, *words, "--over", "num_views=1,3")
    assert said.code == 0, said.err
    assert "6 regions" in said.out and "model.num_views: 3" in said.out


def test_a_text_encoder_that_learns_is_a_row_and_a_stopped_training_goes_on(avse, scenes, tiny, tmp_path, monkeypatch):
    words = ("ablate", scenes, "--seeds", 1, "--cache", tmp_path / "cache", *tiny)
    words = (*words, "--set", "train.epochs=2", "--set", "train.encoder_lr=1e-2")
    words = (*words, "--over", "model.text_encoder.frozen=false")
    whole = avse(*words, "--out", tmp_path / "whole", "--json").json[0]
    from avse.experiment import Trainer

    fit, stop = Trainer.fit, [True]

    def stop_once(self, *args, **kwargs):
        def after(entry):
            if stop and not self.model.text_encoder.frozen:
                stop.clear()
                raise KeyboardInterrupt

        return fit(self, *args, **kwargs, on_epoch=after)

    monkeypatch.setattr(Trainer, "fit", stop_once)
    assert avse(*words, "--out", tmp_path / "parts").code == 130
    row = tmp_path / "parts" / "model.text-encoder.frozen-false-seed0"
    assert [path.name[:9] for path in row.iterdir()] == ["training-"]
    stop.clear()
    parts = avse(*words, "--out", tmp_path / "parts", "--json").json[0]
    assert [path.name for path in row.iterdir()] == ["result.json"]
    for table in (whole, parts):
        for one in table["systems"].values():
            del one["training_seconds"]
    assert whole == parts
    full, learnt = whole["systems"]["full"], whole["systems"]["model.text_encoder.frozen: false"]
    assert full["rsum"] != learnt["rsum"]


def test_what_cannot_be_compared_is_refused(avse, scenes, tiny, tmp_path):
    words = ("ablate", scenes, "--out", tmp_path, "--cache", tmp_path / "cache", *tiny)
    said = avse(*words, "--set", "model.image_encoder.frozen=false")
    assert said.code == 1 and "ablations run on cached grids" in said.err
    said = avse(*words, "--over", "model.image_encoder.resolution=32,64")
    assert said.code == 1 and "the rows share the frozen image encoder" in said.err
    said = avse(*words, "--set", "init_from=somewhere")
    assert said.code == 1 and "leave init_from and ensemble out" in said.err
    said = avse(*words, "--over", "model.kep=0.3")
    assert said.code == 1 and "did you mean 'keep'" in said.err
