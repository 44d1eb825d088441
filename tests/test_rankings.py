"""Rankings in files: round trips, what a data frame sees, refusals, paired comparison by hand."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avse import files, rankings
from avse.data import PairDataset
from avse.metrics import paired_differences, retrieval_metrics
from avse.protocols import Scored
from avse.rankings import RankingsError, check_target, compare, load_rankings, rankings_of, save_rankings
from avse.texts import text_groups

SUFFIXES = [".npz", ".parquet"]


def make(seed=0, shift=1.5, images=12, top=4, name="made", captions=None):
    """A system on a set where image 3 has no caption, one text stands on several images and an id is a text too."""
    random = np.random.default_rng(seed)
    owners = np.array([i for i in range(images) for _ in range(i % 3 + 1) if i != 3], np.int64)
    captions = captions or tuple(f"Ein  Text {j}" if j % 4 else "ein Text, überall" for j in range(len(owners) - 1))
    captions = (*captions, "im 0.jpg")[: len(owners)]
    ids = tuple(f"im {i}.jpg" for i in range(images))
    dataset = PairDataset(name, "test", Path(), ids, tuple(map(Path, ids)), captions, owners, (), ({},) * images)
    columns = text_groups(captions)
    scores = random.standard_normal((images, int(columns.max()) + 1)).astype(np.float32)
    scores[owners, columns] += shift
    scored = Scored(scores, dataset, columns, {"model": f"m{seed}", "dataset": name, "split": "test", "seed": seed})
    reports = {
        key: retrieval_metrics(scores, owners, texts=captions, columns=columns, folds=folds)
        for key, folds in (("plain", 1), ("coco-1k", 4))
    }
    return scored, reports, rankings_of(scored, reports, top)


def same(a, b):
    assert a.meta == b.meta and a.image_ids == b.image_ids and a.captions == b.captions
    for name in ("text_to_image", "i2t_hits", "i2t_scores", "t2i_hits", "t2i_scores"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert getattr(a, name).dtype == getattr(b, name).dtype, name
    assert a.ranks.keys() == b.ranks.keys()
    for protocol in a.ranks:
        for matches in ("plain", "duplicate_aware"):
            for field, values in vars(a.ranks[protocol][matches]).items():
                assert np.array_equal(values, getattr(b.ranks[protocol][matches], field)), (protocol, matches, field)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, suffix):
    pytest.importorskip("pyarrow")
    _, reports, kept = make()
    path = save_rankings(kept, tmp_path / "new" / f"a{suffix}")
    same(load_rankings(path), kept)
    assert load_rankings(path).ranks["coco-1k"]["plain"].fold_starts.tolist() == [0, 3, 6, 9]
    assert np.array_equal(load_rankings(path).ranks["plain"]["plain"].t2i, reports["plain"].ranks.t2i)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    whole = make(top=1000)[2]  # more than there are: all
    same(load_rankings(save_rankings(whole, tmp_path / f"b{suffix}")), whole)
    assert whole.t2i_hits.shape == (len(whole.captions), 12)


def test_hits_are_the_first_by_sorting():
    scored, _, kept = make()
    queries = [i for i in range(12) if i != 3]
    for row, image in enumerate(queries):
        order = sorted(range(scored.scores.shape[1]), key=lambda c: (-scored.scores[image, c], c))[:4]
        assert [scored.columns[text] for text in kept.i2t_hits[row]] == order
        assert kept.i2t_scores[row].tolist() == [scored.scores[image, c] for c in order]
    # the captions that are one text stand once, as the first of them
    assert all(text == np.flatnonzero(scored.columns == scored.columns[text])[0] for text in kept.i2t_hits.ravel())
    for text, column in enumerate(scored.columns):
        order = sorted(range(12), key=lambda i: (-scored.scores[i, column], i))[:4]
        assert kept.t2i_hits[text].tolist() == order
        assert kept.t2i_scores[text].tolist() == [scored.scores[i, column] for i in order]


def test_a_data_frame_sees_queries_and_names(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    _, reports, kept = make()
    rows = parquet.read_table(save_rankings(kept, tmp_path / "a.parquet")).to_pylist()
    assert len(rows) == 11 + len(kept.captions)
    first, last = rows[0], rows[-1]
    assert (first["direction"], first["query"], first["image"]) == ("i2t", "im 0.jpg", "im 0.jpg")
    assert first["hits"] == [kept.captions[j] for j in kept.i2t_hits[0]]
    assert (last["direction"], last["query"], last["image"]) == ("t2i", kept.captions[-1], "im 11.jpg")
    assert last["hits"] == [kept.image_ids[i] for i in kept.t2i_hits[-1]]
    assert last["plain.plain.rank"] == reports["plain"].ranks.t2i[-1] + 1  # people count from 1
    assert all(row["plain.duplicate_aware.rank"] <= row["plain.plain.rank"] for row in rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_is_overwritten_and_a_failed_write_leaves_the_former(tmp_path, suffix, monkeypatch):
    pytest.importorskip("pyarrow")
    former, other = make()[2], make(1)[2]
    path = save_rankings(former, tmp_path / f"a{suffix}")
    with pytest.raises(FileExistsError, match="is there already: choose another name or --force"):
        save_rankings(other, path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", full)
        with pytest.raises(OSError, match="as it was before"):
            save_rankings(other, path, force=True)
    same(load_rankings(path), former)
    save_rankings(other, path, force=True)
    same(load_rankings(path), other)


def test_targets_are_checked_beforehand(tmp_path, monkeypatch):
    with pytest.raises(RankingsError, match=r"kept as .npz or .parquet, not as '.csv'"):
        check_target(tmp_path / "a.csv")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r'pip install "avse\[parquet\]"; .npz needs nothing'):
        check_target(tmp_path / "a.parquet")
    check_target(tmp_path / "a.npz")


def test_damaged_and_other_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow")
    kept = make()[2]
    for suffix in SUFFIXES:
        path = save_rankings(kept, tmp_path / f"a{suffix}")
        data = path.read_bytes()
        for broken in (b"", b"hello", data[: len(data) // 2]):
            path.write_bytes(broken)
            with pytest.raises(RankingsError, match=f"a{suffix}: not a whole rankings file"):
                load_rankings(path)
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    np.savez(tmp_path / "pickled.npz", header=np.array([{}], object))
    for name in ("other.npz", "pickled.npz"):
        with pytest.raises(RankingsError, match="not a whole rankings file"):
            load_rankings(tmp_path / name)
    with np.load(save_rankings(kept, tmp_path / "b.npz")) as archive:
        arrays = dict(archive)
    for change, message in (
        ({"plain.plain.t2i": np.zeros(3, int)}, "not one a query"),
        ({}, "format 'avse rankings 2'"),
    ):
        header = json.loads(arrays["header"].tobytes())
        header["format"] = header["format"] if change else "avse rankings 2"
        changed = {**arrays, "header": np.frombuffer(json.dumps(header).encode(), np.uint8), **change}
        np.savez(tmp_path / "c.npz", **changed)
        with pytest.raises(RankingsError, match=message):
            load_rankings(tmp_path / "c.npz")
    with pytest.raises(FileNotFoundError, match="--save-rankings makes one"):
        load_rankings(tmp_path / "nowhere.npz")
    with pytest.raises(RankingsError, match="kept as .npz or .parquet"):
        load_rankings(tmp_path / "a.json")


def test_comparison():
    (_, reports, a), (_, others, b) = make(0, shift=3.0), make(1, shift=0.0)
    found = compare(a, b, resamples=200)
    assert list(found) == ["plain", "coco-1k"] and list(found["plain"]) == ["plain", "duplicate_aware"]
    for name, both in found.items():
        for matches, values in both.items():
            ours, theirs = (r[name] if matches == "plain" else r[name].duplicate_aware for r in (reports, others))
            assert values["first"]["rsum"] == ours.rsum and values["second"]["rsum"] == theirs.rsum
            assert values["difference"] == paired_differences([ours.ranks], [theirs.ranks], 200)
            assert values["difference"]["rsum"]["mean"] == pytest.approx(ours.rsum - theirs.rsum)
            counts = values["better"]["t2i"]
            pairs = list(zip(ours.ranks.t2i.tolist(), theirs.ranks.t2i.tolist()))
            assert counts["first"] == sum(x < y for x, y in pairs) and counts["second"] == sum(x > y for x, y in pairs)
            assert sum(counts.values()) == len(pairs)
    same_system = compare(a, a, resamples=50)["plain"]["plain"]
    assert same_system["difference"]["rsum"] == {"mean": 0, "ci": [0, 0], "p": 1}
    assert same_system["better"]["i2t"] == {"first": 0, "second": 0, "equal": 11}


def test_other_pairs_are_refused_by_what_differs():
    a = make()[2]
    captions = list(a.captions)
    captions[5] = "anders"
    with pytest.raises(RankingsError, match=r"12 images \(made, split test\) against 8 \(other, split test\)"):
        compare(a, make(images=8, name="other")[2])
    with pytest.raises(RankingsError, match="of the captions number 6 is 'Ein  Text 5' in the one and 'anders' in"):
        compare(a, make(captions=tuple(captions))[2])
    turned = make()[2]
    turned.text_to_image[:2] = turned.text_to_image[[1, 0]]
    turned.text_to_image[0] += 1
    with pytest.raises(RankingsError, match="belongs to another image"):
        compare(a, turned)
    plain, folds = make()[2], make()[2]
    del plain.ranks["coco-1k"], folds.ranks["plain"]
    with pytest.raises(RankingsError, match="no protocol in common: plain against coco-1k"):
        compare(plain, folds)
    assert rankings.FORMAT == "avse rankings 1"


def test_rows_of_features_are_compared_with_pictures_by_their_captions():
    pictures, other = make(0)[2], make(1)[2]
    rows = replace(other, image_ids=tuple(f"row-{i}" for i in range(len(other.image_ids))))
    assert compare(pictures, rows) == compare(pictures, other)
    moved = replace(rows, captions=(*rows.captions[:-1], "another"))
    with pytest.raises(RankingsError, match="of the captions number"):
        compare(pictures, moved)
