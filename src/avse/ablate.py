"""The paper's ablations as one table: parts, sampling, views, block width, keep rate, alpha, objective.

Every row is the full model with some settings changed, trained with the same seeds on the same cached grids and
compared with the full model pair by pair. Finished trainings are read, not trained again; a stopped one goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avse import files
from avse.config import ConfigError, ModelConfig, Recipe, Section, TrainConfig, change
from avse.encoders import ImageEncoder, TextEncoder
from avse.experiment import Measured, settings_there, summarise, train_and_measure
from avse.inputs import Inputs
from avse.sampling import RadialBiasSampling

FULL = "full"
SECTIONS: dict[str, type[Section]] = {"model": ModelConfig, "train": TrainConfig}


@dataclass(frozen=True)
class Variant:
    """One row: the full model with some settings changed."""

    group: str
    name: str
    changes: tuple[str, ...]
    """`section.key=value`, as --set takes them."""


def paper_variants(recipe: Recipe) -> list[Variant]:
    """Return the rows of the paper's ablations around a full model.

    Args:
        recipe: the full model: two views or more, blocks narrower than D, L_reg with a weight.

    Raises:
        ConfigError: the recipe has not all parts, so that leaving one out would change nothing.
    """
    model, train = recipe.model, recipe.train
    width = model.embed_dim
    if model.num_views < 2 or model.block_width == width or not train.decorrelation_weight:
        raise ConfigError(
            f"the full model needs num_views of 2 or more, block_width below embed_dim and decorrelation_weight above "
            f"0; the recipe has {model.num_views}, {model.block_width} of {width} and {train.decorrelation_weight:g}"
        )
    no_reg, whole = "train.decorrelation_weight=0", f"model.block_width={width}"
    other = "official" if train.decorrelation_form == "correct" else "correct"
    loss, scale = ("infonce", "mean") if train.objective == "hinge" else ("hinge", "sum")
    objective = (f"train.objective={loss}", f"train.score_scale={scale}")
    rows = [
        Variant("parts", "one view, cosine", ("model.num_views=1", whole, no_reg)),
        Variant("parts", "+ views", (whole, no_reg)),
        Variant("parts", "+ views, AEOM", (no_reg,)),
        Variant("parts", f"L_reg {other}", (f"train.decorrelation_form={other}", *_weight_of(other))),
        Variant("sampling", "nearest", ("model.sampling=nearest",)),
        Variant("sampling", "uniform", ("model.sampling=uniform",)),
        Variant("sampling", "none: every cell in each view", ("model.keep=1.0",)),
    ]
    rows += [Variant("views", f"V = {v}", (f"model.num_views={v}",)) for v in (1, 2, 3, 4) if v != model.num_views]
    widths = [width // part for part in (1, 2, 4, 8) if width % part == 0]
    rows += [Variant("block width", f"C = {c}", (f"model.block_width={c}",)) for c in widths if c != model.block_width]
    rows += [Variant("keep rate", f"{k:g}", (f"model.keep={k}",)) for k in (0.3, 0.5, 0.8) if k != model.keep]
    rows += [Variant("alpha", f"{a:g}", (f"model.alpha={a}",)) for a in (0.1, 0.3, 1.0, 4.0) if a != model.alpha]
    weights = [10 * train.decorrelation_weight, train.decorrelation_weight / 10]
    rows += [Variant("L_reg weight", f"{w:g}", (f"train.decorrelation_weight={w}",)) for w in weights]
    rows += [
        Variant("objective", loss, objective),
        Variant("objective", f"{loss}, one view, cosine", (*objective, "model.num_views=1", whole, no_reg)),
    ]
    return rows


def _weight_of(form: str) -> tuple[str, ...]:
    """The authors' form has no scale of its own left: it enters as they use it, with weight 1."""
    return ("train.decorrelation_weight=1.0",) if form == "official" else ()


def variants_over(fields: Sequence[str]) -> list[Variant]:
    """Return a row for every value of `section.key=a,b,c`, or of a name that one of model and train has alone.

    Raises:
        ConfigError: text of another form, or a name without its section that neither or both have.

    >>> [variant.changes for variant in variants_over(["model.keep=0.3,0.5"])]
    [('model.keep=0.3',), ('model.keep=0.5',)]
    """
    rows = []
    for text in fields:
        key, sep, values = text.partition("=")
        owners = [name for name, section in SECTIONS.items() if key.strip() in section.model_fields]
        if "." not in key and len(owners) == 1:
            key = f"{owners[0]}.{key.strip()}"
        if not sep or "." not in key or not all(value.strip() for value in values.split(",")):
            raise ConfigError(f"--over {text!r}: expected section.key=a,b,c, such as model.keep=0.3,0.5")
        rows += [
            Variant(key.strip(), value.strip(), (f"{key.strip()}={value.strip()}",)) for value in values.split(",")
        ]
    return rows


def run_ablation(
    recipe: Recipe,
    variants: Sequence[Variant],
    encoders: tuple[ImageEncoder, TextEncoder],
    splits: dict[str, Inputs],
    out: Path,
    seeds: int = 3,
    device: str = "cpu",
    force: bool = False,
) -> dict[str, Any]:
    """Train the full model and every variant with each seed; return and write the table.

    Args:
        recipe: the full model.
        variants: the other rows.
        encoders: shared, frozen; a row that trains its text encoder, or has another, builds its own.
        splits: train, val and test, open. Epochs are chosen on val, figures are of test.
        out: folder of the results, a folder a training, and ablation.json.
        seeds: trainings a row, with seeds train.seed, train.seed + 1, ….
        device: where the models are trained; the encoders are there already.
        force: replace rows of other settings that lie in `out`.

    Raises:
        ConfigError: a variant changes what does not exist or cannot be, or needs other encoders.
        FileExistsError: `out` holds a row of this name with other settings.
    """
    rows = {FULL: recipe} | {f"{v.group}: {v.name}": change(recipe, v.changes) for v in variants}
    for name, changed in rows.items():
        if changed.model.image_encoder != recipe.model.image_encoder:
            raise ConfigError(f"{name}: the rows share the frozen image encoder; compare others with avse train")
    runs: dict[str, list[Measured]] = {name: [] for name in rows}
    first = recipe.train.seed
    planned = [
        (name, change(changed, [f"train.seed={seed}"]), out / f"{_folder_name(name)}-seed{seed}")
        for seed in range(first, first + seeds)
        for name, changed in rows.items()
    ]
    if not force:
        _refuse_other_settings(planned)
    for name, one, folder in planned:
        runs[name].append(train_and_measure(one, encoders, splits, folder, None, device))
    table = {
        **summarise(runs),
        "changes": {f"{v.group}: {v.name}": list(v.changes) for v in variants},
        "overlap": {name: views_overlap(changed.model, encoders[0].grid) for name, changed in rows.items()},
        "recipe": recipe.model_dump(mode="json"),
        "seeds": list(range(first, first + seeds)),
        "data": {name: [part.dataset.num_images, part.dataset.num_pairs] for name, part in splits.items()},
        "dataset": splits["test"].dataset.name,
        "input": _input(recipe, encoders[0]),
        "precision": splits["test"].images.precision,
    }
    files.write_json(out / "ablation.json", table)
    return table


def _refuse_other_settings(planned: Sequence[tuple[str, Recipe, Path]]) -> None:
    for name, recipe, folder in planned:
        there = settings_there(folder)
        if there and there != [recipe.model.model_dump(mode="json"), recipe.train.model_dump(mode="json")]:
            raise FileExistsError(
                f"{folder} holds the row {name!r} with other settings: name another --out, or --force to replace it"
            )


def _input(recipe: Recipe, encoder: ImageEncoder) -> str:
    if recipe.model.image_encoder.source == "regions":
        return f"{encoder.grid[1]} regions"
    return f"{encoder.pixels.size[0]} px"


def views_overlap(model: ModelConfig, grid: tuple[int, int]) -> float | None:
    """Return the mean share of cells that two training views of one image share; None for one view or groups."""
    if model.num_views < 2 or model.sampling == "groups":
        return None
    sampling = RadialBiasSampling(
        model.num_views, model.keep, model.keep_eval, model.alpha, model.sampling, model.count_prefix
    )
    return round(sampling.overlap(grid), 3)


def table_lines(table: dict[str, Any]) -> list[str]:
    """Draw the table for people, a line a row; intervals are 95 %, bootstrap over images and seeds."""
    lines = [
        f"{'':42} overlap   val rSum   i2t R@1  t2i R@1   rSum (interval)            dup.-aware   "
        "minus full (interval), p"
    ]
    for name, row in table["systems"].items():
        overlap = table["overlap"][name]
        low, high = row["rsum"]["ci"]
        line = (
            f"{name:42} {'      -' if overlap is None else f'{overlap:7.2f}'}   {row['val_rsum']:8.1f}   "
            f"{row['i2t']['r1']:7.1f}  {row['t2i']['r1']:7.1f}   {row['rsum']['mean']:6.1f} ({low:.1f} to {high:.1f})"
        )
        line = f"{line:112} {row['duplicate_aware']['rsum']['mean']:8.1f}"
        if name != FULL:
            other = table["differences"][f"{FULL}-{name}"]
            low, high = other["ci"]
            line += f"   {0 - other['mean']:+6.1f} ({0 - high:+.1f} to {0 - low:+.1f}), {other['p']:.3f}"
        lines.append(line)
    counts = "; ".join(
        f"{name} {images:,} images, {texts:,} captions" for name, (images, texts) in table["data"].items()
    )
    lines.append(
        f"{table['dataset']}: {counts}; {table['input']}, {table['precision']}; figures of the test split, "
        f"epoch chosen on val, seeds {table['seeds']}"
    )
    return lines


def _folder_name(name: str) -> str:
    kept = "".join(letter if letter.isalnum() or letter in "=.+" else "-" for letter in name)
    return "-".join(part for part in kept.split("-") if part)
