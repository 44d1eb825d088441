"""What a training is at a moment, and its checkpoints: atomic, the last two and the best kept, resumable to the bit.

A run's folder has checkpoints/step-N/ (weights that training changes, optimiser, scaler, generators, progress) and
checkpoints/best-E/ (the weights of the best epoch so far). Each is written beside its place, flushed and renamed, and
has a manifest with SHA-256: a kill or a full disk leaves the former ones. Knows modules and an optimiser; no data.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avse import checkpoint, files, parallel
from avse.model import AVSE
from avse.trainer.random import random_states
from avse.trainer.record import CHECKPOINTS
from avse.trainer.step import Step

log = logging.getLogger(__name__)

KEPT = 2
"""Checkpoints that are kept beside the best epoch's weights."""
WEIGHTS, PROGRESS = "weights.safetensors", "progress.json"


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, what was found and what to change."""


@dataclass
class Progress:
    """Where a training stands: plain values, so that they can be written."""

    epoch: int = 0
    """Epochs that are over, with their validation."""
    batches: int = 0
    """Batches of the epoch under way that are done."""
    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way: parts of the loss summed over `counts["steps"]` steps."""
    counts: dict[str, int] = field(default_factory=dict)
    collapse: str | None = None
    """What the watch said in the epoch under way."""
    best_epoch: int = -1
    best_rsum: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "validate": 0.0, "wait": 0.0, "save": 0.0})
    watch: dict[str, Any] = field(default_factory=dict)
    """State of the watch over collapse and of the policy on losses that are not finite."""

    def to_json(self) -> str:
        """Write it; an infinity, which JSON cannot say, is null."""
        values = asdict(self)
        values["best_rsum"] = self.best_rsum if math.isfinite(self.best_rsum) else None
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        if values["best_rsum"] is None:
            values["best_rsum"] = -math.inf
        return cls(**values)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: of the run.
        identity: what must be the same when a training goes on: settings, data, encoders.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder / CHECKPOINTS, identity

    def clear(self) -> None:
        """Remove the checkpoints of a former training, which a new one would take for its own."""
        if parallel.is_main():
            shutil.rmtree(self.folder, ignore_errors=True)
        parallel.barrier()

    def save(self, progress: Progress, model: AVSE, step: Step, optimizer: torch.optim.Optimizer, feed: Any) -> None:
        """Write checkpoints/step-N; every process calls it, the first one writes.

        Raises:
            OSError: the disk refused; it names the checkpoint to go on from.
        """
        states = parallel.gather_objects({"feed": feed, "random": random_states()})

        def fill(target: Path) -> None:
            checkpoint.save_tensors(target / WEIGHTS, trained_state(model, step))
            training = {"optimizer": optimizer.state_dict(), "scaler": step.scaler.state_dict(), "ranks": states}
            checkpoint.save_state(target / checkpoint.STATE, training)
            files.write_text(target / PROGRESS, progress.to_json())

        self._write(f"step-{progress.step:08d}", fill, {"step": progress.step, "processes": parallel.world()})
        if parallel.is_main():
            best = self._best_name(progress.best_epoch)
            for old in [*self._newest_first()[KEPT:], *(p for p in self.folder.glob("best-*") if p.name != best)]:
                shutil.rmtree(old, ignore_errors=True)

    def keep_best(self, epoch: int, model: AVSE, step: Step) -> None:
        """Write checkpoints/best-E, before any checkpoint that names it; errors as in `save`."""

        def fill(target: Path) -> None:
            checkpoint.save_tensors(target / WEIGHTS, trained_state(model, step))

        self._write(self._best_name(epoch), fill, {"epoch": epoch})

    def _write(self, name: str, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
        """Write a folder in the first process; where it fails, every process raises."""
        error: OSError | None = None
        if parallel.is_main():
            try:
                checkpoint.write_folder(self.folder / name, fill, {"identity": self.identity, **facts})
            except OSError as refused:
                error = refused
        if parallel.any_rank(error is not None):
            kept = self._newest_first()
            out = f"{kept[0]} is whole: make room and go on with --resume" if kept else "there is none before it"
            raise OSError(
                getattr(error, "errno", None), f"{self.folder / name} could not be written ({error}); {out}"
            ) from error

    def best(self, epoch: int) -> dict[str, Tensor]:
        """Read the best epoch's weights; ManifestError where they are damaged."""
        folder = checkpoint.recover(self.folder / self._best_name(epoch))
        files.verify_manifest(folder)
        return checkpoint.load_tensors(folder / WEIGHTS)

    def load(self, model: AVSE, step: Step, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Any]] | None:
        """Take up the newest whole checkpoint; None where there is none.

        Returns:
            Progress, and this process's states of the `feed` and of dropout (`random`; None: other processes wrote it).

        A damaged one is named, and the one before it is taken.

        Raises:
            TrainingError: it is of other settings or data, or the only ones there are damaged.
        """
        found, manifest = self._whole()
        if found is None:
            return None
        self._compare(found, manifest["identity"])
        load_trained(model, step, checkpoint.load_tensors(found / WEIGHTS))
        state = checkpoint.load_state(found / checkpoint.STATE)
        optimizer.load_state_dict(state["optimizer"])
        step.scaler.load_state_dict(state["scaler"])
        progress = Progress.from_json((found / PROGRESS).read_text("utf-8"))
        then, now = manifest["processes"], parallel.world()
        if then != now:
            log.warning(
                "%s was written by %d processes, there are %d: the batches are the same, dropout is not",
                found,
                then,
                now,
            )
            own = {**state["ranks"][0], "random": None}
        else:
            own = state["ranks"][parallel.rank()]
        return progress, own

    def _whole(self) -> tuple[Path | None, dict[str, Any]]:
        damaged: list[str] = []
        for folder in self._newest_first():
            try:
                return folder, files.verify_manifest(folder)
            except files.ManifestError as error:
                log.warning("checkpoint damaged: %s; looking for the one before it", error)
                damaged.append(str(error))
        if damaged:
            raise TrainingError(
                f"no checkpoint in {self.folder} is whole: {damaged[0]}; start anew with --force or in another --out"
            )
        return None, {}

    def _compare(self, folder: Path, identity: dict[str, Any]) -> None:
        for key, value in json.loads(json.dumps(self.identity)).items():
            if identity.get(key) != value:
                raise TrainingError(
                    f"{folder} was written with another {key}: {_first_difference(identity.get(key), value)}; "
                    "resume with the same settings and data, or start anew in another --out"
                )

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)

    @staticmethod
    def _best_name(epoch: int) -> str:
        return f"best-{epoch:04d}"


def trained_state(model: AVSE, step: Step) -> dict[str, Tensor]:
    """Copy weights and statistics that training changes: a frozen encoder's are not repeated in every checkpoint."""
    frozen = [name for name in ("image_encoder", "text_encoder") if getattr(model, name).frozen]
    tensors = {f"model.{n}": v for n, v in model.state_dict().items() if n.split(".")[0] not in frozen}
    tensors |= {f"infonce.{n}": v for n, v in step.infonce.state_dict().items()}
    return {name: value.detach().cpu().clone() for name, value in tensors.items()}


def load_trained(model: AVSE, step: Step, tensors: dict[str, Tensor]) -> None:
    """Load what `trained_state` copied."""
    for name, module in (("model.", model), ("infonce.", step.infonce)):
        own = {key[len(name) :]: value for key, value in tensors.items() if key.startswith(name)}
        module.load_state_dict(own, strict=name != "model.")


class Signals:
    """SIGTERM and the first Ctrl-C ask for an end at the next step; a second Ctrl-C is one as always."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, where Python allows it: in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _ask(self, number: int, frame: object) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
        log.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)


def _first_difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{key} {_first_difference(old.get(key), new.get(key))}"
    return f"{old!r} there, {new!r} now"
