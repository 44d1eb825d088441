"""How faithful explanations are: against boxes that are known, and by what deleting the explained patches does.

The pointing game asks whether the hottest cell's centre lies in the box that the caption speaks of, the energy which
share of the positive heat lies in it. Deletion blurs a picture's cells, hottest first, and follows the score: the lower
the area under that curve, the more the heat knows; insertion shows the cells of a blurred picture in the same order.
Words are left out of a sentence likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avse.data import PairDataset
from avse.explain import explain
from avse.explain.drawing import FINE, smooth
from avse.explain.gradient import split_pixels
from avse.explain.split import split_score
from avse.heads import unit_blocks
from avse.images import open_image, seen_frame
from avse.intervals import interval
from avse.model import AVSE

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)
"""Shares of the cells that are gone, or there, between none and all."""
RESAMPLES = 2000
CENTRE = 0.25
"""Deviation of the centre prior, in sides of the picture."""
POINTS_WANTED = 1.5

Floats = NDArray[np.float64]
Heats = dict[str, Floats]


def measure_pointing(model: AVSE, dataset: PairDataset, *, pictures: int, gradients: int) -> Iterator[dict[str, Any]]:
    """Play the pointing game on made scenes, whose `parts` give each caption's box.

    Args:
        model: of pictures.
        dataset: the test split.
        pictures: so many, the first by hash.
        gradients: so many of them also for the gradient at the pixels, which takes a pass of the encoder a caption.

    Yields:
        A row a way: `point` and `energy` with their intervals over pictures; `beats`, the explanation's against its.

    Raises:
        ValueError: a data set without boxes.
    """
    if not all("parts" in record for record in dataset.records):
        raise ValueError(
            f"{dataset.name}: no boxes are known of its captions (`parts` in captions.jsonl); made scenes have them: "
            "avse data scenes"
        )
    chosen = dataset.first_by_hash(pictures)
    found: dict[str, list[tuple[int, float, float]]] = {}
    for row in range(chosen.num_images):
        for heats, box in _heats_of_scene(model, chosen, row, row < gradients):
            rows, columns = heats["explanation"].shape
            heats["explanation, as drawn"] = smooth(heats["explanation"], (FINE * columns, FINE * rows))
            for way, heat in heats.items():
                found.setdefault(way, []).append((row, *_against_box(heat, box)))
    yield from _pointing_rows({way: np.array(rows) for way, rows in found.items()}, chosen)


def measure_deletion(model: AVSE, dataset: PairDataset, *, pictures: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Follow the score of each picture's first caption while its cells are blurred, or shown, in several orders.

    Args:
        model: of pictures.
        dataset: the test split.
        pictures: so many, the first by hash.
        seed: of the random order.

    Yields:
        A row an order: areas under both curves, and their paired differences from random with intervals.
    """
    chosen = dataset.first_by_hash(pictures)
    random, areas = np.random.default_rng(seed), dict[str, list[tuple[float, float]]]()
    for row in range(chosen.num_images):
        pixels = model.image_encoder.load_pixels(chosen.image_paths[row])
        text = chosen.captions_of(row)[0]
        inputs = torch.from_numpy(pixels)[None].to(model.device)
        heats = _heats(model, inputs, _tokens(model, inputs), text)
        heats["random"] = random.random(heats["centre prior"].shape)
        for way, curve in _curves(model, pixels, text, heats).items():
            areas.setdefault(way, []).append(curve)
    yield from _deletion_rows({way: np.array(rows) for way, rows in areas.items()}, chosen, seed)


def measure_words(model: AVSE, dataset: PairDataset, *, pictures: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Follow the score of each picture's first caption while its words are left out one by one, in several orders.

    Yields:
        A row an order: the area under the curve over the share of words left out, as `measure_deletion` has it.
        Captions of one word are passed over.

    Raises:
        ValueError: no caption has two.
    """
    chosen, random = dataset.first_by_hash(pictures), np.random.default_rng(seed)
    areas: dict[str, list[tuple[float]]] = {"explanation": [], "from the first": [], "random": []}
    for row in range(chosen.num_images):
        path, text = chosen.image_paths[row], chosen.captions_of(row)[0]
        words = explain(model, path, text).words if text.strip() else ()
        count = len(words)
        if count < 2:
            continue
        orders = np.argsort([-word.score for word in words], kind="stable"), np.arange(count), random.permutation(count)
        texts = [" ".join(words[i].word for i in sorted(order[k:])) for order in orders for k in range(count + 1)]
        scores = model.similarity(model.encode_images([path]), model.encode_texts(texts))[0].reshape(3, -1)
        for way, curve in zip(areas, scores.astype(np.float64)):
            areas[way].append((_area(curve, np.linspace(0, 1, count + 1)),))
    if not areas["random"]:
        raise ValueError(
            f"{dataset.name}: none of {chosen.num_images} captions has two words to leave out: "
            "take more, or none (--words 0)"
        )
    yield from _deletion_rows({way: np.array(rows) for way, rows in areas.items()}, dataset, seed, ("words",))


def _heats_of_scene(
    model: AVSE, dataset: PairDataset, row: int, with_pixels: bool
) -> Iterator[tuple[Heats, tuple[float, float, float, float]]]:
    """Yield the heats of each caption of a scene with its box, as shares of what the encoder sees."""
    path = dataset.image_paths[row]
    with open_image(path) as image:
        size = image.size
    x0, y0, x1, y1 = seen_frame(size, model.image_encoder.pixels)
    pixels = torch.from_numpy(model.image_encoder.load_pixels(path))[None].to(model.device)
    tokens = _tokens(model, pixels)
    for part in dataset.records[row]["parts"]:
        left, top, right, bottom = part["box"]
        across, down = (x1 - x0) * size[0], (y1 - y0) * size[1]
        start = (left - x0 * size[0]) / across, (top - y0 * size[1]) / down
        end = (right - x0 * size[0]) / across, (bottom - y0 * size[1]) / down
        yield _heats(model, pixels, tokens, part["caption"], with_pixels), (*start, *end)


@torch.no_grad()
def _tokens(model: AVSE, pixels: Tensor) -> Tensor:
    return model.image_tokens(pixels)


def _heats(model: AVSE, pixels: Tensor, tokens: Tensor, text: str, with_pixels: bool = False) -> Heats:
    """Return the heat (h, w) of each way: the explanation, what it is compared with, and the centre prior."""
    (rows, columns), prefix = model.image_encoder.grid, model.image_encoder.num_prefix
    heats: Heats = {}
    if model.config.heads == "own":
        heats["explanation"] = split_pixels(model, pixels, text).tokens.sum(axis=0)[prefix:]
    else:
        with torch.no_grad():
            for way, centred in (("explanation", True), ("not centred", False)):
                heats[way] = split_score(model, tokens, text, centred=centred).tokens.sum(axis=0)[prefix:]
        if tokens.ndim == 3:
            slope = _gradient(model, tokens, text, model.pool_views)
            heats["gradient x input, tokens"] = slope[0, prefix:].sum(dim=-1).double().cpu().numpy()
    if with_pixels:
        slope = _gradient(model, pixels, text, model.embed_views).sum(dim=1)
        heats["gradient x input, pixels"] = (
            nn.functional.adaptive_avg_pool2d(slope, (rows, columns))[0].double().cpu().numpy()
        )
    y, x = (np.arange(rows)[:, None] + 0.5) / rows - 0.5, (np.arange(columns) + 0.5) / columns - 0.5
    heats["centre prior"] = np.exp(-(x**2 + y**2) / (2 * CENTRE**2))
    return {way: heat.reshape(rows, columns) for way, heat in heats.items()}


def _gradient(model: AVSE, inputs: Tensor, text: str, views_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Return gradient x input of a score, in the shape of the input."""
    tokens = model.text_encoder.tokenize([text])
    with torch.no_grad():
        texts = model.embed_tokens(tokens.input_ids.to(model.device), tokens.attention_mask.to(model.device))[0]
    with torch.enable_grad():
        leaf = inputs.detach().clone().requires_grad_()
        images = unit_blocks(model.unit_views(views_of(leaf)), model.block_width)[0]
        (slope,) = torch.autograd.grad((texts @ images.T).amax(dim=1).sum(), leaf)
    return slope * inputs


def _against_box(heat: Floats, box: Sequence[float]) -> tuple[float, float]:
    """Return whether the hottest cell's centre lies in a box of shares, and the share of the positive heat in it."""
    rows, columns = heat.shape
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    x, y = (column + 0.5) / columns, (row + 0.5) / rows
    if not heat.max() > heat.min():
        x, y = 0.5, 0.5
    inside = box[0] <= x < box[2] and box[1] <= y < box[3]
    share_y = _covered(rows, box[1], box[3])
    positive = np.maximum(heat, 0.0)
    within = share_y @ positive @ _covered(columns, box[0], box[2])
    return float(inside), float(within / positive.sum()) if positive.any() else 0.0


def _covered(cells: int, start: float, end: float) -> Floats:
    """Return which share of each of so many cells on a side lies between two places."""
    edges = np.arange(cells + 1) / cells
    covered: Floats = np.clip(np.minimum(edges[1:], end) - np.maximum(edges[:-1], start), 0.0, None) * cells
    return covered


def _curves(model: AVSE, pixels: NDArray[np.float32], text: str, heats: Heats) -> dict[str, tuple[float, float]]:
    """Return for each order the areas under the curves of deletion and of insertion."""
    plain = torch.from_numpy(pixels)
    blurred = nn.functional.interpolate(
        nn.functional.adaptive_avg_pool2d(plain, model.image_encoder.grid)[None],
        plain.shape[1:],
        mode="bilinear",
        align_corners=False,
    )[0]
    variants = [plain, blurred]
    for heat in heats.values():
        places = torch.from_numpy((-heat).ravel().argsort(kind="stable").argsort(kind="stable").reshape(heat.shape))
        for level in LEVELS:
            hot = (places < round(level * heat.size))[None, None].float()
            chosen = nn.functional.interpolate(hot, plain.shape[1:], mode="nearest")[0, 0].bool()
            variants += [torch.where(chosen, blurred, plain), torch.where(chosen, plain, blurred)]
    blocks = model.encode_pixels(torch.stack(variants).numpy())
    scores = model.similarity(blocks, model.encode_texts([text]))[:, 0].astype(np.float64)
    at = np.array([0.0, *LEVELS, 1.0])
    found = {}
    for way, inner in zip(heats, scores[2:].reshape(len(heats), len(LEVELS), 2)):
        deletion, insertion = [scores[0], *inner[:, 0], scores[1]], [scores[1], *inner[:, 1], scores[0]]
        found[way] = _area(deletion, at), _area(insertion, at)
    return found


def _area(heights: Sequence[float], at: Floats) -> float:
    return float((np.convolve(heights, [0.5, 0.5], "valid") * np.diff(at)).sum())


def _resampled(values: Floats, owners: NDArray[np.int64]) -> Floats:
    """Return means (R,) of values whose pictures are drawn again; equal owners give equal draws."""
    names, place = np.unique(owners, return_inverse=True)
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = draws.astype(np.float64)
    means: Floats = (weights @ np.bincount(place, values)) / (weights @ np.bincount(place))
    return means


def _pointing_rows(found: dict[str, Floats], dataset: PairDataset) -> Iterator[dict[str, Any]]:
    """Make a row of each way; all of one length but that of pixels, which is compared on its own pictures."""
    ours = found["explanation"]
    drawn = {way: [_resampled(rows[:, k], rows[:, 0].astype(np.int64)) for k in (1, 2)] for way, rows in found.items()}
    for way, rows in found.items():
        own = ours[: len(rows)]
        against = [_resampled(own[:, k] - rows[:, k], rows[:, 0].astype(np.int64)) for k in (1, 2)]
        yield {
            "measure": "pointing",
            "way": way,
            "data": f"{dataset.name}, {dataset.split}",
            "pictures": len(np.unique(rows[:, 0])),
            "captions": len(rows),
            **{name: float(rows[:, k].mean()) for k, name in ((1, "point"), (2, "energy"))},
            **{f"{name}_ci": list(interval(drawn[way][k])) for k, name in enumerate(("point", "energy"))},
            **{f"{name}_behind": float((own[:, k] - rows[:, k]).mean()) for k, name in ((1, "point"), (2, "energy"))},
            **{f"{name}_behind_ci": list(interval(against[k])) for k, name in enumerate(("point", "energy"))},
            "targets": _pointing_targets(way, own, rows),
        }


def _pointing_targets(way: str, ours: Floats, rows: Floats) -> list[dict[str, Any]]:
    if way == "centre prior":
        names = [(1, f"the explanation points {POINTS_WANTED} times as well as it"), (2, "its energy in the box too")]
        wanted = POINTS_WANTED
    elif way.startswith("gradient"):
        names, wanted = [(1, "the explanation points as well as it or better"), (2, "its energy in the box too")], 1.0
    else:
        return []
    ratios = [(name, float(ours[:, k].mean() / max(rows[:, k].mean(), 1e-9))) for k, name in names]
    return [{"wanted": name, "found": ratio, "reached": ratio >= wanted} for name, ratio in ratios]


def _deletion_rows(
    areas: dict[str, Floats], dataset: PairDataset, seed: int, names: tuple[str, ...] = ("deletion", "insertion")
) -> Iterator[dict[str, Any]]:
    """Make a row of each order, with its paired difference from random: `NAME_less` and `NAME_ci`."""
    owners = np.arange(len(areas["random"]))
    for way, rows in areas.items():
        row: dict[str, Any] = {
            "measure": names[0],
            "way": way,
            "data": f"{dataset.name}, {dataset.split}",
            "pictures": len(rows),
            "seed": seed,
            "targets": [],
        }
        for k, name in enumerate(names):
            difference = rows[:, k] - areas["random"][:, k]
            low, high = interval(_resampled(difference, owners))
            row |= {name: float(rows[:, k].mean()), f"{name}_less": float(difference.mean()), f"{name}_ci": [low, high]}
        if way == "explanation":
            row["targets"] = [
                {
                    "wanted": "the deletion curve's area below random's, the interval without zero",
                    "found": row[f"{names[0]}_less"],
                    "reached": row[f"{names[0]}_ci"][1] < 0,
                }
            ]
        yield row
