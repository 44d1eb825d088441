"""`avse evaluate --save-rankings` of two models and `avse compare` of what they left."""

from __future__ import annotations

import pytest

from avse.cli import main


@pytest.fixture(scope="module")
def other_model(tmp_path_factory, scenes, tiny):
    """A second finished run, of another seed and shape."""
    folder = tmp_path_factory.mktemp("runs") / "other"
    changes = ["--set", "model.block_width=16", "--seed", "5"]
    cache = ["--cache", str(folder.parent / "cache")]
    assert main(["train", str(scenes), "--out", str(folder), *cache, *tiny, *changes]) == 0
    return folder / "model"


def test_two_models_are_compared(avse, run_folder, other_model, scenes, tmp_path):
    pytest.importorskip("pyarrow")
    kept = [tmp_path / "a.npz", tmp_path / "b.parquet"]
    figures = []
    for model, path in zip((run_folder / "model", other_model), kept):
        said = avse("evaluate", model, scenes, "--save-rankings", path, "--json", "--bootstrap", 0, "--top", 3)
        assert said.code == 0 and f"rankings in {path}" in said.err
        figures += said.json
    [found] = avse("compare", *kept, "--json", "--resamples", 50).json
    assert found["protocol"] == "plain" and found["models"]["second"] == str(other_model)
    for name, values in zip(("first", "second"), figures):
        assert found["plain"][name]["rsum"] == values["rsum"]
        assert found["duplicate_aware"][name] == values["duplicate_aware"]
    gap = figures[0]["rsum"] - figures[1]["rsum"]
    assert found["plain"]["difference"]["rsum"]["mean"] == pytest.approx(gap)
    said = avse("compare", *kept, "--resamples", 50)
    assert said.code == 0 and f"{gap:+9.2f}" in said.out and "duplicate-aware" in said.out and "t2i R@10" in said.out
    assert avse("evaluate", other_model, scenes, "--save-rankings", kept[0]).lines[-1].endswith("or --force")
    assert avse("evaluate", other_model, scenes, "--save-rankings", kept[0], "--force").code == 0
    assert avse("evaluate", other_model, scenes, "--split", "train", "--save-rankings", tmp_path / "c.npz").code == 0
    said = avse("compare", kept[0], tmp_path / "c.npz")
    assert said.code == 1 and said.out == "" and "6 images (scenes, split test) against 28" in said.lines[0]
    said = avse("compare", kept[0], tmp_path / "nowhere.npz")
    assert said.code == 1 and said.lines == [
        f"avse compare: {tmp_path / 'nowhere.npz'}: no such file; avse evaluate MODEL DATA --save-rankings makes one"
    ]


def test_several_models_in_turn_and_as_one(avse, run_folder, other_model, scenes, tmp_path, caplog):
    import numpy as np

    from avse.data import load_dataset
    from avse.metrics import retrieval_metrics
    from avse.model import AVSE

    models = (run_folder / "model", other_model)
    alone = [avse("evaluate", model, scenes, "--json", "--bootstrap", 0).json[0] for model in models]
    said = avse("evaluate", *models, scenes, "--json", "--bootstrap", 0)
    assert said.code == 0 and said.json == alone and [row["model"] for row in alone] == list(map(str, models))
    assert avse("evaluate", *models, scenes, "--bootstrap", 0).out.count("plain") >= 2
    # the ensemble against scores made the plain way: another Q, C in the second
    dataset = load_dataset(scenes, split="test")
    loaded = [AVSE.from_pretrained(model) for model in models]
    scores = [m.similarity(m.encode_images(dataset.image_paths), m.encode_texts(dataset.captions)) for m in loaded]
    expected = retrieval_metrics(np.mean(np.float64(scores), axis=0).astype(np.float32), dataset.text_to_image)
    path = tmp_path / "e.npz"
    arguments = ("evaluate", *models, scenes, "--ensemble", "--bootstrap", 0, "--save-rankings", path)
    [found] = avse(*arguments, "--json").json
    assert found["i2t"]["mean_rank"] == pytest.approx(expected.i2t.mean_rank)
    assert found["t2i"]["mean_rank"] == pytest.approx(expected.t2i.mean_rank)
    assert found["rsum"] == pytest.approx(expected.rsum)
    assert found["ensemble"] == 2 and found["model"] == f"{models[0]} + {models[1]}"
    assert "members have Q = 1, 2 text blocks" in caplog.text
    # a model with itself is itself
    [twice] = avse("evaluate", models[0], models[0], scenes, "--ensemble", "--json", "--bootstrap", 0).json
    assert twice["rsum"] == alone[0]["rsum"] and twice["model"] == str(models[0]) and twice["ensemble"] == 2


def test_misuse_is_told_before_anything_is_read(avse, run_folder, scenes, tmp_path):
    model = run_folder / "model"
    for arguments, message in (
        (("--ensemble",), "name two or more before the data"),
        (("--save-rankings", tmp_path / "a.csv"), "kept as .npz or .parquet, not as '.csv'"),
        (("--protocol", "coco-1k"), "coco-1k is defined on 5,000 test images; scenes, split test, has 6"),
        (("--protocol", "eccv"), "needs "),
    ):
        said = avse("evaluate", model, scenes, *arguments)
        assert said.code == 1 and said.out == "" and message in said.lines[-1], said.err
    said = avse("evaluate", model, model, scenes, "--save-rankings", tmp_path / "a.npz")
    assert said.code == 1 and "keeps one system: name one model, or --ensemble" in said.lines[0]
    assert not list(tmp_path.iterdir())
