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
from avse.lock import LockError, OwnerLock
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
    unreadable: dict[str, str] = field(default_factory=dict)
    """Pictures of shards that could not be decoded, and why."""
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


def read_progress(path: Path) -> Progress:
    """Read a checkpoint's progress; one that is not what `Progress.to_json` wrote is a CheckpointError."""
    try:
        found = Progress.from_json(path.read_text("utf-8"))
        for name, default in asdict(Progress()).items():
            kind = (str, type(None)) if name == "collapse" else (int, float) if name == "best_rsum" else type(default)
            if not isinstance(getattr(found, name), kind):
                raise TypeError(f"{name} {getattr(found, name)!r}")
        return found
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise checkpoint.CheckpointError(f"{path}: not the progress of a training ({said})") from error


class Checkpoints:
    """The checkpoints of one run; one training at a time owns them.

    Args:
        folder: of the run.
        identity: what must be the same when a training goes on: settings, data, encoders.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder / CHECKPOINTS, identity
        self.lock = OwnerLock(self.folder)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other trainings out, and put right what a kill left: half written folders, half done replacements.

        Raises:
            TrainingError: another training owns them.
        """
        with parallel.main_first():
            if parallel.is_main():
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    self.lock.acquire()
                except LockError as error:
                    way = "a training runs there, wait for it or name" if error.held else "name"
                    raise TrainingError(f"{error}: {way} another --out") from error
                for left in self.folder.glob(".*.former"):
                    checkpoint.recover(self.folder / left.name[1 : -len(".former")])
                for left in (*self.folder.glob(".*.tmp"), *self.folder.glob(".*.former")):
                    shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            self.lock.release()

    def clear(self) -> None:
        """Remove those of a former training, which a new one would take for its own."""
        if parallel.is_main():
            for old in (*self._newest_first(), *self.folder.glob("best-*"), *self.folder.glob("damaged-*")):
                shutil.rmtree(old, ignore_errors=True)

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

        self._write(f"step-{progress.step:08d}", fill, {"best_epoch": progress.best_epoch})
        if parallel.is_main():
            for old in self._newest_first()[KEPT:]:
                shutil.rmtree(old, ignore_errors=True)
            manifests = (json.loads((kept / files.MANIFEST).read_text("utf-8")) for kept in self._newest_first())
            named = {self._best(manifest["best_epoch"]) for manifest in manifests}
            for best in self.folder.glob("best-*"):
                if best not in named:
                    shutil.rmtree(best, ignore_errors=True)

    def keep_best(self, epoch: int, model: AVSE, step: Step) -> None:
        """Write checkpoints/best-E, before any checkpoint that names it; errors as in `save`."""

        def fill(target: Path) -> None:
            checkpoint.save_tensors(target / WEIGHTS, trained_state(model, step))

        self._write(self._best(epoch).name, fill, {})

    def _write(self, name: str, fill: Callable[[Path], None], facts: dict[str, Any]) -> None:
        """Write a folder in the first process; where it fails, every process raises."""
        error: OSError | None = None
        if parallel.is_main():
            try:
                checkpoint.write_folder(self.folder / name, fill, {"identity": self.identity, **facts})
            except OSError as refused:
                error = refused
        if told := parallel.broadcast_object(str(error or "")):
            kept = self._newest_first()
            out = f"{kept[0]} is whole: make room and go on with --resume" if kept else "make room and start again"
            free = f"{shutil.disk_usage(self.folder).free / 2**20:,.0f} MiB free"
            told = f"{self.folder / name} could not be written, {free} ({told}); {out}"
            raise OSError(getattr(error, "errno", None), told)

    def best(self, epoch: int) -> dict[str, Tensor]:
        """Read the best epoch's weights; ManifestError where they are damaged."""
        files.verify_manifest(self._best(epoch))
        return checkpoint.load_tensors(self._best(epoch) / WEIGHTS)

    def _best(self, epoch: int) -> Path:
        return self.folder / f"best-{epoch:04d}"

    def load(self, model: AVSE, step: Step, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, Any]] | None:
        """Take up the newest whole checkpoint, which the first process finds; None where there is none.

        A damaged one is named and put aside, and the one before it is taken.

        Returns:
            Progress, and this process's states of the `feed` and of dropout (`random`; None: other processes wrote it).

        Raises:
            TrainingError: it is of other settings or data, all are damaged, or one process does not see it.
        """
        with parallel.main_first():
            name = self._find() if parallel.is_main() else None
        name = parallel.broadcast_object(name)
        if name is None:
            return None
        found = self.folder / name
        if parallel.any_rank(not (found / files.MANIFEST).is_file()):
            raise TrainingError(f"{found} is not there for every process: --out must lie on a disk that all share")
        load_trained(model, step, checkpoint.load_tensors(found / WEIGHTS))
        state = checkpoint.load_state(found / checkpoint.STATE)
        optimizer.load_state_dict(state["optimizer"])
        step.scaler.load_state_dict(state["scaler"])
        progress = read_progress(found / PROGRESS)
        if progress.best_epoch >= 0 and (problem := next(files.find_damages(self._best(progress.best_epoch)), None)):
            log.warning("the best epoch's weights are damaged: %s; the best epoch to come will be kept", problem)
            progress.best_epoch, progress.best_rsum = -1, -math.inf
        then, now = len(state["ranks"]), parallel.world()
        if then == now:
            return progress, state["ranks"][parallel.rank()]
        log.warning(
            "%s was written by %d processes, there are %d: the batches are the same, dropout is not", found, then, now
        )
        return progress, {**state["ranks"][0], "random": None}

    def _find(self) -> str | None:
        """Return the name of the newest whole checkpoint, and put aside what would be in its way."""
        damaged: list[Path] = []
        why = ""
        for folder in self._newest_first():
            try:
                manifest = files.verify_manifest(folder)
            except files.ManifestError as error:
                why = why or str(error)
                log.warning("checkpoint damaged: %s; looking for the one before it", error)
                damaged.append(folder)
                continue
            self._compare(folder, manifest["identity"])
            for bad in damaged:
                aside = bad.with_name(f"damaged-{bad.name}")
                shutil.rmtree(aside, ignore_errors=True)
                bad.rename(aside)
            return folder.name
        if damaged:
            raise TrainingError(
                f"no checkpoint in {self.folder} is whole: {why}; start anew with --force or in another --out"
            )
        return None

    def _compare(self, folder: Path, identity: dict[str, Any]) -> None:
        for key, value in json.loads(json.dumps(self.identity)).items():
            if identity.get(key) != value:
                raise TrainingError(
                    f"{folder} was written with another {key}: {_first_difference(identity.get(key), value)}; "
                    "resume with the same settings and data, or start anew in another --out"
                )

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"), reverse=True)


def trained_state(model: AVSE, step: Step) -> dict[str, Tensor]:
    """Return weights and statistics that training changes: a frozen encoder's are not repeated in every checkpoint."""
    frozen = [name for name in ("image_encoder", "text_encoder") if getattr(model, name).frozen]
    tensors = {f"model.{n}": v for n, v in model.state_dict().items() if n.split(".")[0] not in frozen}
    tensors |= {f"infonce.{n}": v for n, v in step.infonce.state_dict().items()}
    return {name: value.detach().cpu() for name, value in tensors.items()}


def load_trained(model: AVSE, step: Step, tensors: dict[str, Tensor]) -> None:
    """Load what `trained_state` returned."""
    for name, module in (("model.", model), ("infonce.", step.infonce)):
        own = {key[len(name) :]: value for key, value in tensors.items() if key.startswith(name)}
        module.load_state_dict(own, strict=name != "model.")


class Signals:
    """SIGTERM and the first Ctrl-C ask for an end at the next step; a second Ctrl-C is one as always."""

    def __init__(self) -> None:
        self.asked = ""
        """The name of the signal that asked, if one did."""
        self.preparing = True
        """Nothing is trained yet: a signal ends the program at once, as Ctrl-C does."""

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
        if self.preparing or (self.asked and number == signal.SIGINT):
            raise KeyboardInterrupt
        self.asked = signal.Signals(number).name
        log.warning("%s: stopping after this step, with a checkpoint", self.asked)


def _first_difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{key} {_first_difference(old.get(key), new.get(key))}"
    return f"{_short(old)} there, {_short(new)} now"


def _short(value: Any) -> str:
    """Say a value; of a digest its first digits."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
