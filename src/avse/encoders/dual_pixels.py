"""The families of pairs, CLIP, SigLIP and SigLIP 2, and the pixels that a pair's own image processor makes.

Knows transformers' settings of image processors; no weights. transformers' processors themselves are not used (they
want torchvision): `images.to_pixels` does the same steps with Pillow.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from avse.encoders.base import EncoderError
from avse.encoders.image import check_resolution, image_processor, image_size
from avse.images import PixelSpec

_HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_FILTERS: dict[int, Any] = {2: "bilinear", 3: "bicubic"}


class Family(NamedTuple):
    """What a family does, and the settings of its image processor that a file may leave out.

    ``class_token``: images are pooled by CLS, texts at their end; else by attention, and at the last position.
    """

    title: str
    class_token: bool
    processor: dict[str, Any]


PAIRS = {
    "clip": Family("CLIP", True, {"image_mean": _CLIP_MEAN, "image_std": _CLIP_STD, "do_center_crop": True}),
    "siglip": Family("SigLIP", False, {"image_mean": _HALF, "image_std": _HALF}),
    "siglip2": Family("SigLIP 2 (NaFlex)", False, {"image_mean": _HALF, "image_std": _HALF, "resample": 2}),
}


def pair_pixels(folder: Path, whole: Any, resolution: int | None = None) -> PixelSpec:
    """Return the pixel recipe of a pair's own image processor.

    Args:
        folder: the pair's; preprocessor_config.json, or transformers 5's processor_config.json.
        whole: its configuration.
        resolution: another side in pixels than its own.

    Raises:
        EncoderError: No such file, or steps that are not understood.
    """
    recipe = image_processor(folder)
    if not recipe:
        raise EncoderError(
            f"{folder}: no preprocessor_config.json (or processor_config.json): the pair's pixels are not known; copy "
            "it beside config.json"
        )
    values = {"resample": 3, **PAIRS[whole.model_type].processor, **recipe}
    off = [step for step in ("do_resize", "do_rescale") if values.get(step, True) is False]
    if off or values["resample"] not in _FILTERS:
        found = (
            f"{off[0]} is false" if off else f"resample {values['resample']} is neither 2 (bilinear) nor 3 (bicubic)"
        )
        raise EncoderError(f"{folder}: its image processor's {found}: not understood")
    if resolution is not None:
        check_resolution(whole.vision_config, resolution)
    sides, shorter = _sides(folder, values, whole.vision_config)
    if resolution is not None:
        shorter = None if shorter is None else round(shorter * resolution / sides[0])
        sides = (resolution, resolution)
    plain = values.get("do_normalize", True) is False
    mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else (values["image_mean"], values["image_std"])
    red, green, blue = zip((float(m) for m in mean), (float(s) for s in std))
    return PixelSpec(
        sides, (red[0], green[0], blue[0]), (red[1], green[1], blue[1]), "pillow", _FILTERS[values["resample"]], shorter
    )


def _sides(folder: Path, values: dict[str, Any], vision: Any) -> tuple[tuple[int, int], int | None]:
    """Return (height, width) in pixels and, where pictures are cut, their shorter side before the cut."""
    if vision.model_type == "siglip2_vision_model":
        patches = min(int(values.get("max_num_patches", vision.num_patches)), 4096)
        side = int(patches**0.5) * int(vision.patch_size)
        return (side, side), None
    size, cut = values.get("size", image_size(vision)), values.get("crop_size", image_size(vision))
    shorter = size if isinstance(size, int) else size.get("shortest_edge")
    if not values.get("do_center_crop"):
        cut = size
    if isinstance(cut, dict) and "height" in cut:
        sides = int(cut["height"]), int(cut["width"])
    elif isinstance(cut, int) and (values.get("do_center_crop") or "size" not in values):
        sides, shorter = (cut, cut), shorter if values.get("do_center_crop") else None
    else:
        raise EncoderError(f"{folder}: its image processor's size {size} gives pictures of no fixed height and width")
    if shorter is None and isinstance(size, dict) and (int(size["height"]), int(size["width"])) != sides:
        raise EncoderError(f"{folder}: its image processor's size {size} and crop_size {cut} are not understood")
    return sides, shorter
