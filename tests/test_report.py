"""The page of an evaluation: its answers against a naive search, its parts, its bounds, and what may be overwritten."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avse import report as page
from avse.cli import main
from avse.config import ModelConfig, parse
from avse.data import load_dataset
from avse.data.dataset import FeatureRows, PairDataset
from avse.data.scenes import make_scenes
from avse.evaluate import score
from avse.inputs import open_inputs
from avse.metrics import retrieval_metrics
from avse.model import AVSE
from avse.protocols import Scored, calibration_of, measure
from avse.texts import text_groups
from html_checks import Checked


@pytest.fixture(scope="module")
def model(tiny_config):
    torch.manual_seed(0)
    return AVSE(tiny_config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("scenes") / "s"
    make_scenes(place, count=40, size=48, seed=0)
    return place


@pytest.fixture(scope="module")
def opened(model, folder):
    return open_inputs(model, load_dataset(folder, split="all"))


@pytest.fixture(scope="module")
def scored(model, opened):
    return score([(model, opened, {"model": "runs/<x>/model"})])


def random_scored(images: int, captions: int, seed: int, distinct: int) -> Scored:
    """Random scores of made captions, many of them the same text; one decimal, so that ties are common."""
    random = np.random.default_rng(seed)
    texts = tuple(f"text {number}" for number in random.integers(0, distinct, captions))
    owner = np.sort(np.concatenate([np.arange(images), random.integers(0, images, captions - images)]))
    ids = tuple(f"{i}.png" for i in range(images))
    data = PairDataset("d", "test", ".", ids, ids, texts, owner, (), ({},) * images)
    columns = text_groups(texts)
    return Scored(random.normal(size=(images, columns.max() + 1)).round(1), data, columns, {})


@pytest.mark.parametrize("folds", [1, 2])
@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_answers_and_ranks_agree_with_a_naive_search(folds, aware, seed):
    scored = random_scored(12, 30, seed, 14)
    data, columns = scored.dataset, scored.columns
    texts = data.captions if aware else None
    report = retrieval_metrics(scored.scores, data.text_to_image, texts=texts, columns=columns, folds=folds)
    view = page._View(None, None, scored, report)
    for text in range(data.num_pairs):
        own = int(data.text_to_image[text])
        start = own // (12 // folds) * (12 // folds)
        gallery = range(start, start + 12 // folds)
        carries = [i == own or (aware and data.captions[text] in data.captions_of(i)) for i in range(data.num_images)]
        order = sorted(gallery, key=lambda i: (-view.score(i, text), carries[i], i))
        answers, true = view.answers(text, 3)
        assert answers == order[:3] and carries[true]
        best = max(view.score(i, text) for i in gallery if carries[i])
        assert view.score(true, text) == best and true in gallery
        assert view.ranks[1][text] == sum(view.score(i, text) >= best and not carries[i] for i in gallery)
    for image in range(data.num_images):
        start = image // (12 // folds) * (12 // folds)
        there = {
            int(columns[t]): t for t in range(data.num_pairs) if start <= data.text_to_image[t] < start + 12 // folds
        }
        wanted = sorted((-scored.scores[image, c], c) for c in there)[:3]
        assert [int(columns[t]) for t in view.texts_for(image, 3)] == [c for _, c in wanted]


def test_the_page_stands_alone_and_says_what_was_measured(model, opened, scored, tmp_path):
    reports = {"plain": measure(scored, bootstrap=20)}
    out = page.write_report(tmp_path / "r.html", model, opened, scored, reports)
    text = out.read_text("utf-8")
    seen = Checked(text)
    assert len(text) < 3 << 20 and "http" not in text
    for part in ("split all", "Model runs/<x>/model", f"{scored.dataset.num_images} images", model.fingerprint[:12]):
        assert part in seen.text
    plain = reports["plain"]
    for value in (*plain.i2t.recalls.values(), *plain.t2i.recalls.values(), plain.rsum, plain.duplicate_aware.rsum):
        assert f"{value:.1f}" in seen.text
    assert f"{plain.i2t.intervals[5][0]:.1f} – {plain.i2t.intervals[5][1]:.1f}" in seen.text
    assert (
        "--calibrate" in seen.text and seen.having("card") <= page.FAILED_TEXTS + page.FAILED_IMAGES + page.NEAR_MISSES
    )
    assert [tag for tag, _ in seen.tags].count("h1") == 1 and [tag for tag, _ in seen.tags].count("svg") == 1
    worst = int(plain.duplicate_aware.ranks.t2i.argmax())
    assert scored.dataset.captions[worst] in seen.text
    assert any(alt.startswith("heat of") for alt, _ in seen.pictures)


def test_bins_hold_every_query_once(model, opened, scored):
    view = page._View(model, opened, scored, measure(scored, bootstrap=0))
    seen = Checked("".join(page._histogram(view)))
    told = [text for text in seen.text.split("%") if "image to text, " in text]
    shares = [float(text.rsplit(":", 1)[1]) for text in told]
    assert len(shares) > 2 and sum(shares) == pytest.approx(100, abs=0.05 * len(shares))
    first = 100 * (view.ranks[0] == 0).mean()
    assert shares[0] == pytest.approx(first, abs=0.051)


def test_a_calibrated_model_shows_its_curve(model, opened, scored, tmp_path, monkeypatch):
    learnt = calibration_of(scored)
    monkeypatch.setattr(model, "calibration", learnt)
    report = {"plain": measure(scored, bootstrap=0)}
    seen = Checked(page.write_report(tmp_path / "r.html", model, opened, scored, report).read_text())
    assert f"Below S {learnt.threshold(scored.dataset.num_images):.3f}" in seen.text
    assert [tag for tag, _ in seen.tags].count("svg") == 2 and "--calibrate" not in seen.text
    assert "split all: this very split" in seen.text
    monkeypatch.setattr(model, "calibration", replace(learnt, facts={**learnt.facts, "split": "val"}))
    other = page.write_report(tmp_path / "r.html", model, opened, scored, report, force=True)
    assert "split val." in Checked(other.read_text()).text


def test_a_perfect_system_has_no_failures(model, opened, scored, tmp_path):
    perfect = np.full(scored.scores.shape, -1.0, np.float32)
    perfect[scored.dataset.text_to_image, scored.columns] = 1.0
    best = replace(scored, scores=perfect)
    reports = {"plain": measure(best, bootstrap=0)}
    seen = Checked(page.write_report(tmp_path / "r.html", model, opened, best, reports).read_text())
    assert seen.pictures == [] and seen.text.count("None: ") == 3


def test_pictures_that_are_gone_leave_their_names(model, folder, opened, scored, tmp_path):
    paths = tuple(tmp_path / name for name in scored.dataset.image_ids)
    view = page._View(
        model, opened, replace(scored, dataset=replace(scored.dataset, image_paths=paths)), measure(scored, bootstrap=0)
    )
    seen = Checked("".join(page._failed_texts(view)))
    assert seen.pictures == [] and seen.having("gone") == seen.having("tile") > 4 and "no such file" in seen.text


def test_regions_are_shown_as_text_and_explained_from_their_features(tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "test_ims.npy", random.normal(size=(12, 6, 10)).astype(np.float32))
    captions = tuple(f"a {('red', 'blue', 'green')[i % 3]} dog {i}" for i in range(24))
    path = tmp_path / "test_ims.npy"
    data = PairDataset(
        "regions", "test", tmp_path, tuple(f"row-{i}" for i in range(12)), (path,) * 12, captions,
        np.arange(24) // 2, (), ({},) * 12, features=FeatureRows(path, np.arange(12)),
    )  # fmt: skip
    torch.manual_seed(0)
    values = {
        "image_encoder": {"source": "regions", "width": 10, "num_regions": 6},
        "text_encoder": {"source": "bigru", "vectors": None, "hidden": 16},
        "num_views": 3, "embed_dim": 16, "block_width": 8, "sampling": "groups",
    }  # fmt: skip
    model = AVSE(parse(ModelConfig, values), captions=["a red green blue dog"])
    inputs = open_inputs(model, data)
    scored = score([(model, inputs, {})])
    report = {"plain": measure(scored, bootstrap=0)}
    seen = Checked(page.write_report(tmp_path / "r.html", model, inputs, scored, report).read_text())
    assert seen.pictures == [] and "row-" in seen.text and seen.having("words") > 0


def test_the_command_writes_a_page_and_never_over_one(model, folder, tmp_path, capsys):
    saved, out = model.save_pretrained(tmp_path / "model"), tmp_path / "pages" / "r.html"
    asked = ["evaluate", str(saved), str(folder), "--bootstrap", "0", "--report", str(out)]
    assert main(asked) == 0
    said = capsys.readouterr()
    assert f"report in {out}" in said.err and "rSum" in said.out
    first = out.read_bytes()
    assert main(asked) == 1 and "--force" in capsys.readouterr().err and out.read_bytes() == first
    assert main(["evaluate", str(saved), str(folder), "--report", str(tmp_path)]) == 1
    assert f"{tmp_path} is a folder" in capsys.readouterr().err
    assert main(["evaluate", str(saved), str(saved), str(folder), "--report", str(tmp_path / "two.html")]) == 1
    assert "one model" in capsys.readouterr().err
    assert main([*asked, "--force", "--json"]) == 0 and capsys.readouterr().out.startswith("{")
    assert [path.name for path in out.parent.iterdir()] == ["r.html"]
    Checked(out.read_text())


def test_a_report_shows_itself_in_a_notebook(scored):
    report = measure(scored, bootstrap=20)
    seen = Checked(report._repr_html_())
    assert "duplicate-aware" in seen.text and f"{report.rsum:.1f}" in seen.text and report.notes()[-1] in seen.text
    low, high = report.duplicate_aware.interval
    assert f"{low:.1f} – {high:.1f}" in seen.text
    bare = retrieval_metrics(np.eye(3), np.arange(3), meta={"<b>": "<script>"})
    assert "<b> <script>" in Checked(bare._repr_html_()).text and "–" not in Checked(bare._repr_html_()).text
