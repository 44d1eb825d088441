"""Which of the field's protocols a data set allows: by its counts and ids, never by trust in a split's name.

The names are those of `avse evaluate --protocol`; flickr30k-1k is plain on the right data. Computes no figure.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avse.data.dataset import PairDataset

FLICKR_1K, COCO_5K, COCO_FOLDS, ECCV = "flickr30k-1k", "coco-5k", "coco-1k", "eccv"
CLAIMS = {"flickr30k": (FLICKR_1K,), "coco": (COCO_5K, COCO_FOLDS)}
"""What must be possible on data that is said to be of a family."""
_CAPTIONS = 5


def protocols(parts: Mapping[str, PairDataset], family: str = "") -> dict[str, str]:
    """Return for each protocol why it cannot be run, empty where it can.

    Args:
        parts: The splits by name. MS-COCO's 5,000 test images are those of ``testall`` where there is such a split.
        family: "flickr30k" or "coco" where the data is known to be one of them.
    """
    test, whole = parts.get("test"), parts.get("testall", parts.get("test"))
    flickr = "the data is MS-COCO" if family == "coco" else _count(test, "test", 1_000)
    coco = "the data is Flickr30K" if family == "flickr30k" else _count(whole, "testall or test", 5_000)
    return {
        "plain": "" if test is not None and test.num_images else f"no usable split 'test'{_there(parts)}",
        FLICKR_1K: flickr,
        COCO_5K: coco,
        COCO_FOLDS: coco,
        ECCV: coco or _ids(whole),
    }


def _count(part: PairDataset | None, name: str, images: int) -> str:
    if part is None or not part.num_images:
        return f"no usable split {name}"
    if part.num_images != images:
        return f"{images:,} images are wanted in {part.split!r}, {part.num_images:,} can be used"
    counts = np.bincount(part.text_to_image, minlength=images)
    few = np.flatnonzero(counts < _CAPTIONS)
    if len(few):
        return (
            f"{_CAPTIONS} captions an image are wanted in {part.split!r}, {len(few):,} images have fewer, "
            f"as {part.image_ids[int(few[0])]} with {counts[few[0]]}"
        )
    return ""


def _ids(part: PairDataset | None) -> str:
    """Say what of MS-COCO's ids is missing in a part."""
    if part is None:
        return "no usable split test"
    for i, record in enumerate(part.records):
        ids = record.get("caption_ids")
        if type(record.get("cocoid")) is not int or not isinstance(ids, list) or len(ids) != len(part.captions_of(i)):
            return (
                f"MS-COCO's ids of images and captions are wanted, {part.image_ids[i]} has none: "
                "Karpathy's dataset_coco.json holds them"
            )
    return ""


def _there(parts: Mapping[str, PairDataset]) -> str:
    names = [name for name, part in parts.items() if part.num_images]
    return f"; there is {', '.join(names)}" if names else ""
