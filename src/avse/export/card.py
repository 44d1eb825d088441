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

CARD = "README.md"
_RUN, _REPORT = "run.json", "report.json"
_DEMO = "systems/avse-seed0/result.json"
"""Of `avse demo`, whose model/ is the first seed's."""
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
) -> dict[str, Any]:
    """Copy a model folder and add its model card; `AVSE.from_pretrained` loads the result as it does the original.

    Args:
        model: A model folder of avse.
        out: The new folder.
        data: A data set whose test split is measured for the card; None takes the figures that the training left.
        licence: Of the model, as the hub names it, such as "mit"; None: the card says that it is unknown.
        force: Replace a model folder that is there.

    Returns:
        ``out``, the number of ``files``, the ``split`` that the figures are of (None: there are none), ``licence``.

    Raises:
        CheckpointError, ManifestError: ``model`` is no model folder of avse, or damaged.
        FileExistsError: ``out`` is there and not ``force``, or it is something else.
        ValueError: ``data`` has no usable test split, or what the training recorded is damaged.
    """
    model, out = checkpoint.recover(model), Path(out)
    if not (model / files.MANIFEST).is_file():
        raise checkpoint.CheckpointError(
            f"{model} is no model folder of avse (no {files.MANIFEST}); a pair of transformers becomes one by "
            "AVSE.from_dual_encoder(FOLDER).save_pretrained(OTHER)"
        )
    if out.exists() and not (force and (out / files.MANIFEST).is_file()):
        why = "choose another name or --force" if (out / files.MANIFEST).is_file() else "it is no model folder"
        raise FileExistsError(f"{out} is there already: {why}")
    manifest = files.verify_manifest(model)
    config, record = checkpoint.read_config(model), _record(model)
    figures = _recorded(record) if data is None else _measured(model, data)
    card = model_card(out.resolve().name, config, record, figures, licence, checkpoint.CALIBRATION in manifest["files"])

    def fill(folder: Path) -> None:
        for name in manifest["files"].keys() - {files.MANIFEST}:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(model / name, folder / name)

    extra = {name: value for name, value in manifest.items() if name != "files"}
    checkpoint.write_folder(out, fill, extra, force=force)
    files.write_text(out / CARD, card)
    count = sum(path.is_file() for path in out.rglob("*"))
    return {"out": str(out), "files": count, "split": figures and figures.split, "licence": licence}


def model_card(
    name: str,
    config: ModelConfig,
    record: dict[str, Any],
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


def _front(name: str, record: dict[str, Any], figures: Figures | None, licence: str | None) -> dict[str, Any]:
    """Return the metadata that the hub reads; figures of validation, which chose the epoch, are no result there."""
    front: dict[str, Any] = {"license": licence or "unknown", "library_name": "avse"}
    front["pipeline_tag"] = "feature-extraction"
    front["tags"] = ["avse", "image-text-retrieval", "multi-vector", "late-interaction"]
    if trained := record.get("data", {}).get("name"):
        front["datasets"] = [trained]
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


def _training_data(record: dict[str, Any]) -> str:
    data = record.get("data", {})
    if not data:
        return "Not recorded: no run.json lies beside the model this folder was made of."
    lines = [f"Data set: {data['name']}."]
    for split, use in (("train", "learnt from"), ("val", "chose the epoch")):
        counts = data.get(split, {})
        said = [
            f"{counts[key]:,} {word}" for key, word in (("images", "pictures"), ("pairs", "captions")) if key in counts
        ]
        lines.append(f"- {split} ({use}): {', '.join(said) or 'not recorded'}")
    leaks = record.get("leaks", {})
    if leaks.get("looked"):
        lines.append(f"- training pictures found again in validation or test: {leaks['found']} ({leaks['done']})")
    return "\n".join(lines)


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
    return told + "\n\n" + "\n".join(rows)


def _limits(record: dict[str, Any]) -> str:
    seen = record.get("data", {}).get("train", {}).get("images")
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


def _training(record: dict[str, Any]) -> str:
    settings = record.get("identity", {}).get("config")
    if not settings:
        return "Not recorded."
    parts = []
    if record.get("command"):
        command = [Path(record["command"][0]).name, *record["command"][1:]]
        parts.append(f"```sh\n{shlex.join(command)}\n```")
    versions, hardware = record.get("versions", {}), record.get("hardware", {})
    said = [f"{name} {version}" for name, version in versions.items() if version and name != "platform"]
    if hardware.get("processor"):
        said.append(", ".join([hardware["processor"], *(gpu["name"] for gpu in hardware.get("gpus", []))]))
    if seconds := record.get("seconds", {}).get("train"):
        said.append(f"{seconds:.0f} s of training")
    if record.get("best_epoch") is not None:
        said.append(f"epoch {record['best_epoch'] + 1} of {settings['epochs']} was the best on validation")
    parts += ["; ".join(said) + "."] if said else []
    return "\n\n".join([*parts, f"```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```"])


def _title(key: str) -> str:
    side, _, measure = key.partition("_")
    if side in _SIDES:
        return f"R@{measure[1:]}, {_SIDES[side]}"
    return {"rsum": "rSum", "duplicate_aware_rsum": "rSum, duplicate-aware"}[key]


def _record(model: Path) -> dict[str, Any]:
    """Return what run.json says, or of a demo the same from its report; empty where the training left nothing."""
    home = model.resolve().parent
    if run := _read(home / _RUN):
        return run
    report, result = _read(home / _REPORT), _read(home / _DEMO)
    if not report or not result:
        return {}
    data: dict[str, Any] = {"name": report["dataset"]}
    for split in ("train", "val"):
        data[split] = {"images": report["images"][split], "pairs": report["captions"][split]}
    return {
        "data": data,
        "identity": {"config": result["identity"]["train"]},
        "best_epoch": result.get("best_epoch"),
        "seconds": result.get("seconds", {}),
        "demo": report,
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): take it away, and the card says that nothing is known"
        ) from error


def _recorded(record: dict[str, Any]) -> Figures | None:
    """Return the test figures of a demo of one seed, else the validation figures of the best epoch, else nothing."""
    demo = record.get("demo", {})
    if demo.get("seeds") == [0]:
        own = demo["systems"]["avse"]
        told = f"{demo['images']['test']:,} pictures, {demo['pairs']:,} captions"
        told += f"; resolution {demo['resolution']}, precision {demo['precision']}, seed 0"
        return Figures(
            demo["dataset"], "test", told, _recalls(own) | {"rsum": (own["rsum"]["mean"], own["rsum"]["ci"])}
        )
    best = record.get("best")
    if not best:
        return None
    counts = record["data"]["val"]
    told = f"{counts['images']:,} pictures, {counts['pairs']:,} captions"
    return Figures(record["data"]["name"], "val", told, _recalls(best) | {"rsum": (best["rsum"], None)})


def _recalls(found: dict[str, Any]) -> dict[str, Value]:
    return {f"{side}_r{k}": (found[side][f"r{k}"], None) for side in _SIDES for k in _KS}


def _measured(model: Path, data: str | Path) -> Figures:
    """Evaluate the model on the test split."""
    from avse.data import load_dataset
    from avse.evaluate import evaluate
    from avse.model import AVSE

    dataset = load_dataset(data, split="test")
    report = evaluate(AVSE.from_pretrained(model), dataset)
    values: dict[str, Value] = {}
    for name, side in (("i2t", report.i2t), ("t2i", report.t2i)):
        values |= {f"{name}_r{k}": (side.recalls[k], side.intervals.get(k)) for k in _KS}
    values["rsum"] = report.rsum, report.interval
    if report.duplicate_aware:
        values["duplicate_aware_rsum"] = report.duplicate_aware.rsum, report.duplicate_aware.interval
    told = f"{len(report.ranks.i2t):,} pictures, {len(report.ranks.t2i):,} captions"
    meta = [f"{key} {report.meta[key]}" for key in ("resolution", "precision", "seed") if key in report.meta]
    return Figures(dataset.name, "test", "; ".join([told, ", ".join(meta)]), values)
