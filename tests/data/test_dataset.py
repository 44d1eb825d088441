"""avse.data.dataset: one split of pairs."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avse.data.dataset import PairDataset, Skip, split_by_hash


@pytest.fixture
def data():
    return PairDataset(
        name="toy",
        split="test",
        root=Path("r"),
        image_ids=("a", "b", "c"),
        image_paths=(Path("r/a"), Path("r/b"), Path("r/c")),
        captions=("a1", "a2", "b1", "c1", "c2", "c3"),
        text_to_image=np.array([0, 0, 1, 2, 2, 2]),
        skipped=(Skip("d", "too large: 9 pixels"), Skip("e", "too large: 8 pixels"), Skip("f", "no caption")),
        records=({"k": 0}, {"k": 1}, {"k": 2}),
        notes=("noted",),
    )


def test_counts_and_captions(data):
    assert (data.num_images, data.num_pairs) == (3, 6)
    assert [data.captions_of(i) for i in range(3)] == [("a1", "a2"), ("b1",), ("c1", "c2", "c3")]
    assert data.summary().splitlines() == [
        "toy (test): 3 images, 6 captions",
        "noted",
        "skipped 2: too large",
        "skipped 1: no caption",
    ]


def test_subset_keeps_order_and_renumbers(data):
    part = data.subset([2, 0])
    assert part.image_ids == ("c", "a") and part.records == ({"k": 2}, {"k": 0})
    assert part.captions == ("c1", "c2", "c3", "a1", "a2")
    assert part.text_to_image.tolist() == [0, 0, 0, 1, 1] and part.text_to_image.dtype == np.int64
    assert part.captions_of(1) == ("a1", "a2")
    assert data.subset([]).num_pairs == 0
    with pytest.raises(ValueError, match="stands twice"):
        data.subset([1, 1])
    with pytest.raises(IndexError):
        data.subset([3])


def test_captions_need_not_stand_together(data):
    mixed = replace(data, captions=("b", "a", "b2"), text_to_image=np.array([1, 0, 1]))
    assert [mixed.captions_of(i) for i in range(3)] == [("a",), ("b", "b2"), ()]
    assert mixed.subset([1]).captions == ("b", "b2")


def test_fingerprint_changes_with_every_part(data):
    prints = {
        data.fingerprint(),
        replace(data, image_ids=("a", "b", "x")).fingerprint(),
        replace(data, captions=("a1", "a2", "b1", "c1", "c2", "x")).fingerprint(),
        replace(data, text_to_image=np.array([0, 1, 1, 2, 2, 2])).fingerprint(),
        data.subset([1, 0, 2]).fingerprint(),
    }
    assert len(prints) == 5
    assert replace(data, records=({}, {}, {}), root=Path("elsewhere")).fingerprint() == data.fingerprint()


def test_fields_that_do_not_fit_are_refused(data):
    with pytest.raises(ValueError, match="3 ids, 2 paths"):
        replace(data, image_paths=data.image_paths[:2])
    with pytest.raises(ValueError, match="6 captions, 5 positions"):
        replace(data, text_to_image=np.zeros(5, np.int64))
    with pytest.raises(ValueError, match=r"0\.\.2, found 3"):
        replace(data, text_to_image=np.array([0, 0, 1, 2, 2, 3]))


def test_split_by_hash_is_fixed_and_about_80_10_10():
    # the first 16 hexadecimal digits of their SHA-256 are these shares of 2**64: 0.3149, 0.8536, 0.9656
    assert [split_by_hash(name) for name in ("a.jpg", "3.jpg", "13.jpg")] == ["train", "val", "test"]
    counts = Counter(split_by_hash(f"{i}.jpg") for i in range(20_000))
    assert abs(counts["train"] / 20_000 - 0.8) < 0.01
    assert abs(counts["val"] / 20_000 - 0.1) < 0.01
