"""A model folder as Hugging Face's hub shows it: the files as they are, and a README.md of what is known of them.

The card is made of what the training recorded beside the model (run.json; of `avse demo` report.json) and of figures
measured now. What is not known is said to be not known. The manifest does not list README.md, since people edit cards:
the model loads and verifies whatever becomes of it. Knows no network.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from avse import __version__, checkpoint, files
from avse.config import ModelConfig
from avse.export import HUB, check_folder
from avse.export.records import Best, Record, System, read_record

CARD = "README.md"
_SIDES = {"i2t": "picture to sentence", "t2i": "sentence to picture"}
_KS = (1, 5, 10)


Value = tuple[float, Sequence[float] | None]
"""A figure in percent and the ends of its interval, if there is one."""


class Figures(NamedTuple):
    """What was measured, on which split of which data, what else it stands with, and the figures."""

    data: str
    split: str
    told: str
    values: dict[str, Value]


def write_folder(
    model: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    licence: str | None = None,
    force: bool = False,
    split: str = "test",
) -> dict[str, Any]:
    """Copy a model folder and add its model card; `AVSE.from_pretrained` loads the result as it does the original.

    Args:
        model: A model folder of avse.
        out: The new folder.
        data: A data set that is measured for the card; None takes the figures that the training left.
        licence: Of the model, as the hub names it, such as "mit"; None: the card says that it is unknown.
        force: Replace a folder that this function wrote.
        split: Of ``data``.

    Returns:
        ``out``, the number of ``files``, the ``split`` that the figures are of (None: there are none), ``licence``.

    Raises:
        CheckpointError, ManifestError: ``model`` is no model folder of avse, or damaged.
        FileExistsError: ``out`` is there and not ``force``, or it is something else.
        ValueError: ``data`` has no usable split of that name, what the training recorded is damaged, or ``out`` is the
            model, lies in it or holds it.
    """
    model, out = checkpoint.recover(model), Path(out)
    if not (model / files.MANIFEST).is_file():
        raise checkpoint.CheckpointError(
            f"{model} is no model folder of avse (no {files.MANIFEST}); a pair of transformers becomes one by "
            "AVSE.from_dual_encoder(FOLDER).save_pretrained(OTHER)"
        )
    check_folder(out, HUB, force, model)
    manifest = files.verify_manifest(model)
    config, record = checkpoint.read_config(model), read_record(model, manifest.get("fingerprint"))
    figures = _recorded(record, model) if data is None else _measured(model, data, split)
    card = model_card(out.resolve().name, config, record, figures, licence, checkpoint.CALIBRATION in manifest["files"])

    def fill(folder: Path) -> None:
        for name in manifest["files"].keys() - {files.MANIFEST}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, folder / name)

    extra = {name: value for name, value in manifest.items() if name != "files"}
    checkpoint.write_folder(out, fill, {**extra, "kind": HUB}, force=force)
    files.write_text(out / CARD, card)
    count = sum(path.is_file() for path in out.rglob("*"))
    return {"out": str(out), "files": count, "split": figures and figures.split, "licence": licence}


def model_card(
    name: str,
    config: ModelConfig,
    record: Record,
    figures: Figures | None,
    licence: str | None,
    calibrated: bool,
) -> str:
    """Return the card: the hub's YAML, then the text.

    Args:
        name: What the model is called.
        config: The model's.
        record: What the training left, empty where nothing is known.
        figures: What was measured, None where nothing is known.
        licence: None: unknown.
        calibrated: Whether the model tells weak answers.
    """
    head = yaml.safe_dump(_front(name, record, figures, licence), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---",
        f"# {name}",
        "An image-text retrieval model of [Asymmetric Visual Semantic Embedding](https://arxiv.org/abs/2503.06974), "
        f"written by avse {__version__}. {_shape(config)}",
        "## Load it",
        _loading(name),
        "## Intended use",
        "Ranking pictures for a sentence, and sentences for a picture, within one collection. A score lies between "
        f"-{config.num_text_blocks} and {config.num_text_blocks}: it ranks, it is no probability. "
        + ("Weak answers are marked: calibration.json says where that was learnt." if calibrated else _UNCALIBRATED),
        "## Training data",
        _training_data(record),
        "## Figures",
        _figures(figures),
        "## Limits",
        _limits(record),
        "## Licence",
        f"The model: {licence}." if licence else "The model: unknown; nobody has stated one.",
        _encoders(config),
        "## Training",
        _training(record),
    ]
    return "\n\n".join(parts) + "\n"


_UNCALIBRATED = (
    "It is not calibrated, so the best answer is given even where nothing fits "
    "(`avse evaluate MODEL DATA --split val --calibrate` learns a threshold)."
)


def _front(name: str, record: Record, figures: Figures | None, licence: str | None) -> dict[str, Any]:
    """Return the metadata that the hub reads; figures of validation, which chose the epoch, are no result there."""
    front: dict[str, Any] = {"license": licence or "unknown", "library_name": "avse"}
    front["pipeline_tag"] = "feature-extraction"
    front["tags"] = ["avse", "image-text-retrieval", "multi-vector", "late-interaction"]
    if figures is not None and figures.split == "test":
        metrics = []
        for key, (value, ends) in figures.values.items():
            metric: dict[str, Any] = {"type": key, "name": _title(key), "value": round(value, 2)}
            if ends:
                metric["args"] = {"interval_95": [round(end, 2) for end in ends]}
            metrics.append(metric)
        dataset = {"name": figures.data, "type": figures.data, "split": figures.split}
        task = {"type": "image-text-retrieval", "name": "Image-text retrieval"}
        front["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return front


def _shape(config: ModelConfig) -> str:
    return (
        f"A picture is embedded as P = {config.num_image_blocks} unit blocks from {config.num_views} view(s), a "
        f"sentence as Q = {config.num_text_blocks}, each {config.block_width} wide; "
        "S(I, T) = Σ_j max_i <v_i, t_j>."
    )


def _loading(name: str) -> str:
    return (
        "```python\nfrom avse import AVSE\n\n"
        f'model = AVSE.from_pretrained("{name}")  # this folder; a hub id with allow_download=True\n'
        'images = model.encode_images(["photo.jpg"])  # (n, P, C)\n'
        'texts = model.encode_texts(["a red star", "a dog on a beach"])  # (m, Q, C)\n'
        "print(model.similarity(images, texts))  # (n, m)\n```"
    )


def _training_data(record: Record) -> str:
    if record.data is None:
        return "Not recorded: no run.json of this very model lies beside the one this folder was made of."
    lines = [f"Data set: {record.data.name}."]
    for split, use, counts in (
        ("train", "learnt from", record.data.train),
        ("val", "chose the epoch", record.data.val),
    ):
        numbers = ((counts.images, "pictures"), (counts.pairs, "captions"))
        said = [f"{number:,} {word}" for number, word in numbers if number is not None]
        lines.append(f"- {split} ({use}): {', '.join(said) or 'not recorded'}")
    if record.leaks.looked:
        done = f" ({_LEAKS.get(record.leaks.done, record.leaks.done)})" if record.leaks.found else ""
        lines.append(f"- training pictures found again in validation or test: {record.leaks.found}{done}")
    return "\n".join(lines)


_LEAKS = {"warn": "they were kept", "drop": "they were left out"}
"""What was done with them, in words."""


def _figures(figures: Figures | None) -> str:
    measure = "`avse export MODEL --to huggingface --data DATA --out FOLDER` measures the test split and puts them here"
    if figures is None:
        return f"None are recorded; {measure}."
    rows = ["| figure | percent | 95 % interval |", "|---|---|---|"]
    for key, (value, ends) in figures.values.items():
        rows.append(
            f"| {_title(key)} | {value:.1f} | {f'{ends[0]:.1f} to {ends[1]:.1f}' if ends else 'not recorded'} |"
        )
    told = f"{figures.data}, split {figures.split}: {figures.told}."
    if figures.split == "val":
        told += f" These figures chose the epoch and flatter it; no test figures are recorded: {measure}."
    elif figures.split != "test":
        told += f" This is not the test split, and the model may have learnt from it: {measure}."
    return told + "\n\n" + "\n".join(rows)


def _limits(record: Record) -> str:
    seen = record.data and record.data.train.images
    count = f"the {seen:,} pictures it was trained with" if seen else "those it was trained with"
    return (
        f"- How it does on pictures and wording unlike {count} was not measured.\n"
        "- No study of bias or misuse is recorded. The encoders bring what they learnt from their own data.\n"
        "- The best of a collection is an answer, whether or not it fits."
    )


def _encoders(config: ModelConfig) -> str:
    lines = [
        "The encoders inside have licences of their own, which are not recorded; look where each is from:",
        "",
    ]
    for side, settings in (("pictures", config.image_encoder), ("sentences", config.text_encoder)):
        trained = "frozen" if settings.frozen else "fine-tuned"
        lines.append(f"- {side}: `{settings.source}` ({trained})")
    return "\n".join(lines)


def _training(record: Record) -> str:
    settings = record.identity.config
    if not settings:
        return "Not recorded."
    parts = []
    if record.command:
        command = [Path(record.command[0]).name, *record.command[1:]]
        parts.append(f"```sh\n{shlex.join(command)}\n```")
    said = [f"{name} {version}" for name, version in record.versions.items() if version and name != "platform"]
    if record.hardware.processor:
        said.append(", ".join([record.hardware.processor, *(gpu.name for gpu in record.hardware.gpus)]))
    if seconds := record.seconds.get("train"):
        said.append(f"{seconds:.0f} s of training")
    if record.best_epoch is not None:
        said.append(f"epoch {record.best_epoch + 1} of {settings['epochs']} was the best on validation")
    parts += ["; ".join(said) + "."] if said else []
    return "\n\n".join([*parts, f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"])


def _title(key: str) -> str:
    side, _, measure = key.partition("_")
    if side in _SIDES:
        return f"R@{measure[1:]}, {_SIDES[side]}"
    return {"rsum": "rSum", "duplicate_aware_rsum": "rSum, duplicate-aware"}[key]


def _recorded(record: Record, model: Path) -> Figures | None:
    """Return the test figures of a demo of one seed, else the validation figures of the best epoch, else nothing."""
    demo, data, best = record.demo, record.data, record.best
    if demo is not None and demo.seeds == [0] and "avse" in demo.systems:
        own = demo.systems["avse"]
        told = f"{demo.images.get('test', 0):,} pictures, {demo.pairs:,} captions"
        told += f"; resolution {demo.resolution}, precision {demo.precision}, seed 0"
        return Figures(demo.dataset, "test", told, _recalls(own) | {"rsum": (own.rsum.mean, own.rsum.ci)})
    if best is None or data is None:
        return None
    told = f"{data.val.images or 0:,} pictures, {data.val.pairs or 0:,} captions"
    known = dict(record.identity.config or {})
    pixels = json.loads((model / "image_encoder" / "encoder.json").read_text("utf-8")).get("pixels")
    if pixels:  # features of regions have none
        known["resolution"] = pixels["size"][0]
    meta = [f"{key} {known[key]}" for key in ("resolution", "precision", "seed") if key in known]
    told += f"; {', '.join(meta)}" if meta else ""
    return Figures(data.name, "val", told, _recalls(best) | {"rsum": (best.rsum, None)})


def _recalls(found: Best | System) -> dict[str, Value]:
    return {f"{side}_r{k}": (getattr(getattr(found, side), f"r{k}"), None) for side in _SIDES for k in _KS}


def _measured(model: Path, data: str | Path, split: str) -> Figures:
    """Evaluate the model on a split."""
    from avse.data import load_dataset
    from avse.evaluate import evaluate
    from avse.model import AVSE

    dataset = load_dataset(data, split=split)
    report = evaluate(AVSE.from_pretrained(model), dataset)
    values: dict[str, Value] = {}
    for name, side in (("i2t", report.i2t), ("t2i", report.t2i)):
        values |= {f"{name}_r{k}": (side.recalls[k], side.intervals.get(k)) for k in _KS}
    values["rsum"] = report.rsum, report.interval
    if report.duplicate_aware:
        values["duplicate_aware_rsum"] = report.duplicate_aware.rsum, report.duplicate_aware.interval
    told = f"{len(report.ranks.i2t):,} pictures, {len(report.ranks.t2i):,} captions"
    meta = [f"{key} {report.meta[key]}" for key in ("resolution", "precision", "seed") if key in report.meta]
    return Figures(dataset.name, split, "; ".join([told, ", ".join(meta)]), values)
