"""One training of one system, measured on the test split and kept; means over seeds, intervals, paired differences.

What the demo and the ablations share. Knows recipes and open splits, not which systems are compared.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avse import files
from avse.config import Recipe
from avse.encoders import ImageEncoder, TextEncoder, build_text_encoder
from avse.evaluate import evaluate
from avse.inputs import Inputs, TextInputs
from avse.metrics import Protocol, Ranks, interval, paired_difference, report_from_ranks, resampled_rsums
from avse.model import AVSE
from avse.trainer import Trainer
from avse.trainer.facts import learn_calibration


@dataclass(frozen=True)
class Measured:
    """One training of one system, measured on the test split."""

    plain: Ranks
    duplicate_aware: Ranks
    history: list[dict[str, Any]]
    best_epoch: int
    seconds: dict[str, float]


def train_and_measure(
    recipe: Recipe,
    encoders: tuple[ImageEncoder, TextEncoder],
    splits: dict[str, Inputs],
    folder: Path,
    model_folder: Path | None,
    device: str = "cpu",
) -> Measured:
    """Train one system with one seed and measure it on the test split; a finished one is read from `folder`.

    One that was stopped goes on where it was, from the checkpoints that lie there meanwhile.

    Args:
        recipe: the system with its seed.
        encoders: shared, frozen. A text encoder that the recipe trains, or another one, is built anew.
        splits: train, val and test, open.
        folder: where the result is kept.
        model_folder: where the model is saved; None: not at all.
        device: where the model is trained; the encoders are there already.
    """
    identity = {
        "model": recipe.model.model_dump(mode="json"),
        "train": recipe.train.model_dump(mode="json"),
        "data": {name: part.dataset.fingerprint() for name, part in splits.items()},
        "pictures": {name: part.images.content for name, part in splits.items()},
        "text_encoder": encoders[1].fingerprint(),
    }
    done = _read(folder, identity)
    if done is not None and (model_folder is None or model_folder.exists()):
        return done
    torch.manual_seed(recipe.train.seed)
    text_encoder, settings = encoders[1], recipe.model.text_encoder
    if not settings.frozen or settings != text_encoder.settings:
        text_encoder = build_text_encoder(settings, splits["train"].dataset.captions).to(device)
        splits = {name: _with_texts_for(text_encoder, part, device) for name, part in splits.items()}
    model = AVSE(recipe.model, image_encoder=encoders[0], text_encoder=text_encoder).to(device)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    run = folder / f"training-{digest[:12]}"
    result = Trainer(model, recipe.train).fit(splits["train"], splits["val"], out=run, resume=True, save_model=False)
    if not result.finished:
        raise KeyboardInterrupt
    report = evaluate(model, splits["test"].dataset, inputs=splits["test"], bootstrap=0)
    if model_folder is not None:
        model.calibration = learn_calibration(model, splits["val"])
        model.save_pretrained(model_folder, force=True, extra={"seed": recipe.train.seed})
    aware = report.duplicate_aware or report
    measured = Measured(report.ranks, aware.ranks, result.history, result.best_epoch, result.seconds)
    _write(folder, identity, measured)
    shutil.rmtree(run, ignore_errors=True)
    return measured


def _with_texts_for(encoder: TextEncoder, part: Inputs, device: str) -> Inputs:
    return replace(part, texts=TextInputs(encoder, part.dataset.captions, torch.device(device)))


def summarise(runs: dict[str, list[Measured]]) -> dict[str, Any]:
    """Turn trainings into figures: means over seeds, intervals, paired differences of the first system to the others.

    Args:
        runs: system -> its trainings, one a seed; the seeds of all systems are the same.
    """
    systems = {name: figures([m.plain for m in seeds]) for name, seeds in runs.items()}
    for name, seeds in runs.items():
        systems[name]["duplicate_aware"] = figures([m.duplicate_aware for m in seeds])
        systems[name]["val_rsum"] = float(np.mean([m.history[m.best_epoch]["val"]["rsum"] for m in seeds]))
        systems[name]["best_epochs"] = [m.best_epoch + 1 for m in seeds]
        systems[name]["training_seconds"] = [round(sum(m.seconds.values()), 1) for m in seeds]
    first, *others = runs
    differences = {}
    for other in others:
        ours, theirs = runs[first], runs[other]
        plain = paired_difference([m.plain for m in ours], [m.plain for m in theirs])
        aware = paired_difference([m.duplicate_aware for m in ours], [m.duplicate_aware for m in theirs])
        differences[f"{first}-{other}"] = {**plain, "duplicate_aware": aware}
    return {"systems": systems, "differences": differences}


def figures(seeds: list[Ranks]) -> dict[str, Any]:
    """Average one system over its training seeds: rSum with its interval, recalls and ranks of both directions."""
    protocols = [report_from_ranks(ranks) for ranks in seeds]
    rsums = [protocol.rsum for protocol in protocols]
    return {
        "rsum": {"mean": float(np.mean(rsums)), "ci": list(interval(resampled_rsums(seeds))), "seeds": rsums},
        "i2t": _mean(protocols, "i2t"),
        "t2i": _mean(protocols, "t2i"),
    }


def _mean(protocols: list[Protocol], side: str) -> dict[str, float]:
    parts = [protocol.to_dict()[side] for protocol in protocols]
    names = ("r1", "r5", "r10", "median_rank", "mean_rank")
    return {name: float(np.mean([part[name] for part in parts])) for name in names}


def settings_there(folder: Path) -> list[Any] | None:
    """Return the settings [model, train] of the training that a folder holds, None where it holds none."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    with _whole(path):
        identity = json.loads(path.read_text("utf-8")).get("identity", {})
        return [identity.get("model"), identity.get("train")]


def _write(folder: Path, identity: dict[str, Any], measured: Measured) -> None:
    values = {
        "identity": identity,
        "plain": _lists(measured.plain),
        "duplicate_aware": _lists(measured.duplicate_aware),
        "history": measured.history,
        "best_epoch": measured.best_epoch,
        "seconds": measured.seconds,
    }
    files.write_json(folder / "result.json", values)


def _read(folder: Path, identity: dict[str, Any]) -> Measured | None:
    path = folder / "result.json"
    if not path.is_file():
        return None
    with _whole(path):
        values = json.loads(path.read_text("utf-8"))
        if values.get("identity") != json.loads(json.dumps(identity)):
            return None
        ranks = [
            Ranks(**{name: np.array(column, np.int64) for name, column in values[key].items()})
            for key in ("plain", "duplicate_aware")
        ]
        return Measured(ranks[0], ranks[1], values["history"], values["best_epoch"], values["seconds"])


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn whatever a damaged result raises into a ValueError that names it."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"{path}: not the result of a training ({said}): remove it, and it is trained anew") from error


def _lists(ranks: Ranks) -> dict[str, list[int]]:
    return {name: column.tolist() for name, column in asdict(ranks).items()}
