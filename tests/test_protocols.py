"""Protocols: which data they fit, COCO 1K by hand, ECCV Caption and CxC against their package and naive loops."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avse import eccv
from avse.data import PairDataset
from avse.data.dataset import Skip
from avse.metrics import retrieval_metrics
from avse.protocols import Scored, fitting_protocols, measure, prepare, why_not
from avse.texts import text_groups

SMALL = 200
"""Images of the ground truth that is cut for the tests; a multiple of five."""


def make_dataset(captions, owners, records=None, name="made"):
    images = int(max(owners)) + 1
    ids = tuple(f"{i:05}.jpg" for i in range(images))
    owners = np.asarray(owners, np.int64)
    records = tuple(records or ({},) * images)
    return PairDataset(name, "test", Path(), ids, tuple(map(Path, ids)), tuple(captions), owners, (), records)


def make_scored(scores, dataset):
    return Scored(scores, dataset, text_groups(dataset.captions), {"model": "m"})


def coco_sized(records=None):
    """5,000 images with five captions each; 50 distinct texts keep the scores small."""
    return make_dataset([f"text {i % 50}" for i in range(25000)], np.repeat(np.arange(5000), 5), records)


def test_fitting_protocols(monkeypatch):
    with_ids = [{"cocoid": 4999 - i} for i in range(5000)]
    assert fitting_protocols(coco_sized(with_ids)) == ("plain",)  # such as val2017, which has 5,000 images too
    with pytest.raises(ValueError, match="coco-5k is defined on Karpathy's test images .* others by their ids"):
        prepare(["coco-5k"], coco_sized(with_ids))
    ids = " ".join(map(str, range(5000)))
    monkeypatch.setattr("avse.protocols.COCO_IDS", hashlib.sha256(ids.encode()).hexdigest())
    assert fitting_protocols(coco_sized(with_ids)) == ("coco-5k", "coco-1k")
    assert fitting_protocols(coco_sized()) == ("plain",)
    assert fitting_protocols(coco_sized(with_ids).subset(range(4999))) == ("plain",)


def test_coco_is_refused_on_other_sets():
    part = coco_sized().subset(range(4990))
    with pytest.raises(ValueError, match=r"coco-1k is defined on 5,000 .* test, has 4,990 images: take another split"):
        prepare(["coco-1k"], part)
    part = replace(part, skipped=(Skip("a", "b"),) * 10)
    with pytest.raises(ValueError, match=r"4,990 images \(10 left out\)"):
        measure(make_scored(np.zeros((4990, 50)), part), "coco-5k")
    with pytest.raises(ValueError, match="no protocol '1k'; there are plain, flickr30k-1k, coco-5k, coco-1k, eccv"):
        prepare(["1k"], part)


def test_fewer_than_five_captions_are_refused():
    short = make_dataset(["t"] * 24999, np.repeat(np.arange(5000), 5)[1:])
    with pytest.raises(ValueError, match=r"takes 5 captions an image; .* 1 images with fewer, as '00000.jpg' with 4"):
        prepare(["coco-5k"], short)
    assert "1 images with fewer" in why_not("coco-1k", short) and why_not("plain", short) == ""
    flickr = coco_sized().subset(range(1000))
    assert why_not("flickr30k-1k", flickr) == "" and "has 1,000 images" in why_not("coco-5k", flickr)


def test_coco_that_lost_a_picture_says_what_is_not_measured(caplog):
    records = [{"cocoid": i} for i in range(5000)]
    part = replace(coco_sized(records).subset(range(4999)), skipped=(Skip("4999.jpg", "missing"),))
    assert fitting_protocols(part) == ("plain",)
    assert "plain alone: of COCO's 5000 images 1 cannot be used" in caplog.text


def test_coco_takes_five_captions_an_image(caplog):
    caplog.set_level("INFO")
    owners = np.sort(np.append(np.repeat(np.arange(5000), 5), [7] * 2))
    records = [{"caption_ids": list(range(7 if i == 7 else 5))} for i in range(5000)]
    dataset = make_dataset([f"t {i % 60}" for i in range(25002)], owners, records)
    cut = prepare(["coco-5k", "plain"], dataset)
    assert cut.num_pairs == 25000 and cut.captions_of(7) == dataset.captions_of(7)[:5]
    assert cut.records[7] == {"caption_ids": [0, 1, 2, 3, 4]}
    assert "first 5 captions of an image are taken: 2 of 25002 are left out" in caplog.text
    assert prepare(["plain"], dataset) is dataset and prepare(["coco-1k"], cut) is cut
    with pytest.raises(ValueError, match="takes 5 captions an image"):
        measure(make_scored(np.zeros((5000, 60), np.float32), dataset), "coco-1k")


def test_coco_1k_is_the_mean_of_five_thousands_in_order():
    random = np.random.default_rng(0)
    dataset = coco_sized()
    scored = make_scored(random.standard_normal((5000, 50)), dataset)
    folds = measure(scored, "coco-1k", bootstrap=20)
    parts = []
    for start in range(0, 5000, 1000):
        rows, own = slice(start, start + 1000), slice(5 * start, 5 * start + 5000)
        matrix = scored.scores[rows][:, scored.columns[own]]
        parts.append(retrieval_metrics(matrix, np.repeat(np.arange(1000), 5), texts=dataset.captions[own]))
    assert folds.rsum == pytest.approx(np.mean([part.rsum for part in parts]))
    aware = [part.duplicate_aware.t2i.r10 for part in parts]
    assert folds.duplicate_aware.t2i.r10 == pytest.approx(np.mean(aware))
    assert folds.i2t.median_rank == pytest.approx(np.mean([part.i2t.median_rank for part in parts]))
    assert folds.shared_texts == 1 and folds.interval and folds.to_dict()["folds"] == 5


@pytest.mark.slow
def test_coco_5k_is_all_at_once():
    dataset = coco_sized()
    scored = make_scored(np.random.default_rng(0).standard_normal((5000, 50)), dataset)
    whole = measure(scored, "coco-5k", bootstrap=0)
    assert whole.meta == {"model": "m", "protocol": "coco-5k"} and not whole.interval
    assert whole.rsum == retrieval_metrics(scored.scores[:, scored.columns], dataset.text_to_image).rsum


@pytest.fixture(scope="module")
def truth():
    """The package's metrics, cut to the first images of COCO's test split and their captions."""
    pytest.importorskip("eccv_caption")
    metrics = eccv.load_metrics()
    metrics.coco_ids = metrics.coco_ids[: 5 * SMALL]
    texts = {int(text) for text in metrics.coco_ids}
    images = {metrics.coco_gts["t2i"][text][0] for text in texts}
    kept = {"i2t": (images, texts), "t2i": (texts, images)}
    for gts in (metrics.coco_gts, metrics.cxc_gts, metrics.eccv_gts):
        for side, (queries, items) in kept.items():
            cut = {
                query: [m for m in matches if m in items] for query, matches in gts[side].items() if query in queries
            }
            gts[side] = {query: matches for query, matches in cut.items() if matches}
    assert min(len(metrics.eccv_gts[side]) for side in kept) > 30
    return metrics


@pytest.fixture
def coco(truth, monkeypatch):
    """A data set with the ids of that part, in the order of the split."""
    monkeypatch.setattr(eccv, "load_metrics", lambda: truth)
    return coco_part(truth)


def coco_part(truth):
    texts = truth.coco_ids.tolist()
    images = list(dict.fromkeys(truth.coco_gts["t2i"][text][0] for text in texts))
    place = {image: i for i, image in enumerate(images)}
    records = [{"cocoid": image, "caption_ids": []} for image in images]
    owners = [place[truth.coco_gts["t2i"][text][0]] for text in texts]
    for text, owner in zip(texts, owners):
        records[owner]["caption_ids"].append(text)
    assert owners == sorted(owners)  # captions of an image stand together: folds in order are the package's
    return make_dataset([f"caption {text}" for text in texts], owners, records, "coco")


def ids_of(dataset):
    images = [record["cocoid"] for record in dataset.records]
    return images, [text for record in dataset.records for text in record["caption_ids"]]


def sorted_lists(scores, dataset):
    images, texts = np.array(ids_of(dataset)[0]), np.array(ids_of(dataset)[1])
    i2t = {int(image): texts[np.argsort(-row)].tolist() for image, row in zip(images, scores)}
    t2i = {int(text): images[np.argsort(-row)].tolist() for text, row in zip(texts, scores.T)}
    return {"i2t": i2t, "t2i": t2i}


def test_plain_recalls_are_the_packages(truth, coco):
    scores = np.random.default_rng(1).standard_normal((coco.num_images, coco.num_pairs)).astype(np.float32)
    scores[coco.text_to_image, np.arange(coco.num_pairs)] += 2
    lists = sorted_lists(scores, coco)
    whole = retrieval_metrics(scores, coco.text_to_image)
    folds = retrieval_metrics(scores, coco.text_to_image, folds=5)
    for k in (1, 5, 10):
        for report, oracle in ((whole, truth.coco_5k_recalls), (folds, truth.coco_1k_recalls)):
            expected = oracle(lists, "all", K=k)
            assert report.i2t.recalls[k] == pytest.approx(100 * expected["i2t"])
            assert report.t2i.recalls[k] == pytest.approx(100 * expected["t2i"])
    assert 0 < whole.t2i.r1 < folds.t2i.r1 < 100


def naive_eccv(scores, dataset, truth, side, ground):
    """R@K, R-Precision and mAP@R by their definitions; among equal scores the non-matches come first."""
    images, texts = ids_of(dataset)
    queries, items, rows = (images, texts, scores) if side == "i2t" else (texts, images, scores.T)
    found = []
    for query, matches in getattr(truth, f"{ground}_gts")[side].items():
        row = rows[queries.index(query)]
        right = set(matches)
        order = sorted(range(len(items)), key=lambda j: (-row[j], items[j] in right))
        hits = [items[j] in right for j in order]
        count = len(right)
        precision = sum(hits[:count]) / count
        average = sum(sum(hits[: r + 1]) / (r + 1) for r in range(count) if hits[r]) / count
        found.append([any(hits[:1]), any(hits[:5]), any(hits[:10]), precision, average])
    r1, r5, r10, precision, average = 100 * np.mean(found, axis=0)
    if ground == "cxc":
        return {"r1": r1, "r5": r5, "r10": r10}
    return {"r1": r1, "r_precision": precision, "map_at_r": average}


@pytest.mark.parametrize("coarse", [False, True])
def test_eccv_and_cxc_are_their_definitions(truth, coco, coarse, capfd, monkeypatch):
    image, matches = next(iter(truth.eccv_gts["i2t"].items()))
    monkeypatch.setitem(truth.eccv_gts["i2t"], image, [*matches, 1])  # a match that no gallery holds, as two there are
    scores = np.random.default_rng(2).standard_normal((coco.num_images, coco.num_pairs)).astype(np.float32)
    scores[coco.text_to_image, np.arange(coco.num_pairs)] += 2
    scores = np.round(scores) if coarse else scores
    found = eccv.figures(scores, np.arange(coco.num_pairs), coco)
    for ground in ("cxc", "eccv"):
        for side in ("i2t", "t2i"):
            assert found[ground][side] == pytest.approx(naive_eccv(scores, coco, truth, side, ground)), (ground, side)
    assert capfd.readouterr().err == ""
    # captions that are one text share a column
    columns = np.arange(coco.num_pairs) // 2
    same = eccv.figures(scores[:, ::2], columns, coco)
    assert same == eccv.figures(scores[:, ::2][:, columns], np.arange(coco.num_pairs), coco)


def test_a_perfect_model_scores_100_and_a_constant_one_0(truth, coco):
    images, texts = ({value: i for i, value in enumerate(part)} for part in ids_of(coco))
    for ground in ("cxc", "eccv"):
        for side in ("i2t", "t2i"):
            gts, scores = getattr(truth, f"{ground}_gts"), np.zeros((len(images), len(texts)))
            for query, matches in gts[side].items():
                for match in matches:
                    image, text = (query, match) if side == "i2t" else (match, query)
                    scores[images[image], texts[text]] = 1
            found = eccv.figures(scores, np.arange(len(texts)), coco)[ground][side]
            assert set(found.values()) == {100.0}
    constant = eccv.figures(np.zeros((len(images), 1)), np.zeros(len(texts), np.int64), coco)
    assert {value for sides in constant.values() for both in sides.values() for value in both.values()} == {0.0}


def test_eccv_stands_beside_the_plain_figures(truth, coco):
    scores = np.random.default_rng(3).standard_normal((coco.num_images, coco.num_pairs))
    report = measure(make_scored(scores, coco), "eccv", bootstrap=0)
    values = report.to_dict()
    assert values["eccv"].keys() == {"i2t", "t2i"} and "cxc: i2t r1" in report.table()
    assert values["rsum"] == retrieval_metrics(scores, coco.text_to_image).rsum
    # the order of the images changes nothing
    order = np.random.default_rng(4).permutation(coco.num_images)
    turned = coco.subset(order.tolist())
    texts = [text for image in order for text in np.flatnonzero(coco.text_to_image == image)]
    assert eccv.figures(scores[order][:, texts], np.arange(len(texts)), turned) == report.further


def test_eccv_refuses_other_data(coco):
    with pytest.raises(ValueError, match=r"eccv needs COCO's ids .*made, split test has none for '00000.jpg'"):
        prepare(["eccv"], make_dataset(["a"], [0]))
    with pytest.raises(ValueError, match=r"COCO's 200 test images; coco, split test has 199 of them and 0 others"):
        prepare(["eccv"], coco.subset(range(1, SMALL)))
    records = [{**record, "cocoid": record["cocoid"] + (i == 3)} for i, record in enumerate(coco.records)]
    with pytest.raises(ValueError, match="has 199 of them and 1 others"):
        prepare(["eccv"], replace(coco, records=tuple(records)))
    records = [{**record, "caption_ids": record["caption_ids"][i == 3 :]} for i, record in enumerate(coco.records)]
    with pytest.raises(ValueError, match=r"'00003.jpg': 4 caption_ids for 5 captions"):
        prepare(["eccv"], replace(coco, records=tuple(records)))


def test_the_whole_ground_truth_is_the_karpathy_split():
    pytest.importorskip("eccv_caption")
    metrics = eccv.load_metrics()
    dataset = coco_part(metrics)
    eccv.check(dataset)
    assert fitting_protocols(dataset) == ("coco-5k", "coco-1k") and dataset.num_pairs == 25000


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "eccv_caption", None)
    with pytest.raises(ImportError, match=r'protocol eccv needs the extra eccv .*: pip install "avse\[eccv\]"'):
        prepare(["eccv"], make_dataset(["a"], [0], [{"cocoid": 1, "caption_ids": [2]}]))


def test_protocols_import_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, avse.protocols; assert 'torch' not in sys.modules"], check=True)
