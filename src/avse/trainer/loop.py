"""The training loop: epochs of steps, selection on validation, checkpoints on the way, a watch that speaks up.

Knows the feed, the step, the evaluation and the run's folder. Everything random in an epoch derives from (seed, epoch),
and a checkpoint holds the generators' states: a run that was killed ends with the bits of one that was not.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avse import files, parallel
from avse.ahead import Ahead
from avse.config import TrainConfig
from avse.data import PairDataset, Skip
from avse.data.shards import PairShards
from avse.evaluate import evaluate
from avse.features import Precision
from avse.inputs import Inputs, open_inputs
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.plots import draw_curves
from avse.trainer.board import Board
from avse.trainer.facts import described, figures, identity_of, learn_calibration, views_overlap
from avse.trainer.feed import Fed, Feed, PairFeed, ShardFeed, augmentation
from avse.trainer.random import set_random_states
from avse.trainer.record import HISTORY, MODEL, RunRecord, refuse_to_replace
from avse.trainer.schedule import epoch_seed, hold_encoders, parameter_groups, rate_factor, set_rates
from avse.trainer.state import Checkpoints, Progress, Signals, TrainingError, load_trained, trained_state
from avse.trainer.step import Step
from avse.trainer.table import ProgressTable
from avse.trainer.watch import CollapseWatch, NanPolicy

log = logging.getLogger(__name__)

CURVES = "curves.png"


class _StoppedError(Exception):
    """A signal asked for an end."""


@dataclass
class TrainResult:
    """What a training left."""

    history: list[dict[str, Any]]
    """One entry an epoch: rates, loss parts, skipped steps, validation figures. No times: equal runs are equal."""
    best_epoch: int
    best_rsum: float
    seconds: dict[str, float]
    """Wall-clock seconds of `train`, `validate`, `save`, and of waiting for data (`wait`, a part of `train`)."""
    skipped: tuple[Skip, ...] = ()
    folder: Path | None = None
    stopped_by: str = ""
    """The signal that asked for an end, if one did; it may have come when nothing was left to do."""
    finished: bool = True
    """False: that signal stopped it; its folder has a checkpoint, the model has the last step's weights."""


class Trainer:
    """Train a model and keep its best epoch by validation rSum.

    Launched by torchrun or accelerate, every process builds the same trainer; the batch is divided among them.

    Args:
        model: trained in place; after `fit` it holds the best epoch's weights.
        config: how.
        cache: folder for the grids of a frozen encoder; None reads pictures every time.
        progress: show a bar with rate and time left, and a table.
        shuffle_buffer: samples a reader of tar shards draws from.
    """

    def __init__(
        self,
        model: AVSE,
        config: TrainConfig | None = None,
        *,
        cache: str | Path | None = None,
        progress: bool = True,
        shuffle_buffer: int = 1000,
    ) -> None:
        self.model, self.config, self.cache, self.progress = model, config or TrainConfig(), cache, progress
        self.shuffle_buffer = shuffle_buffer
        if self.config.word_augment and (model.text_encoder.frozen or not model.text_encoder.can_augment):
            raise TrainingError(
                "word_augment is true, but the text encoder is frozen or has no mask token; set train.word_augment to "
                "false, or text_encoder.frozen to false with a BERT-family encoder"
            )
        self.step = Step(model, self.config)

    def fit(
        self,
        train: PairDataset | Inputs | PairShards,
        val: PairDataset | Inputs,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_start: Callable[[bool], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
        force: bool = False,
        facts: dict[str, Any] | None = None,
        save_model: bool = True,
    ) -> TrainResult:
        """Train, and select on validation.

        Args:
            train: the pairs to learn from, the split already open, or tar shards to stream.
            val: the pairs that select the epoch. Never the test split.
            out: folder for model/ (the best epoch), checkpoints/, history.json, curves.png and run.json.
            resume: go on from the newest whole checkpoint of `out`, if there is one.
            on_start: called in the first process once `out` is this training's, with whether it goes on.
            on_epoch: called with each new entry of the history.
            force: replace a training that `out` holds.
            facts: further entries of run.json.
            save_model: calibrate the model and write model/ at the end.

        Raises:
            TrainingError: too few pairs, a test split that would select, non-finite losses in a row, a checkpoint of
                other settings or data, or another training in `out`.
            FileExistsError: `out` holds a training, and neither `resume` nor `force` says what to do with it.
            OSError: a checkpoint could not be written; the one before it is whole.
        """
        self.folder, self.signals = Path(out) if out is not None else None, Signals()
        self.save_model = save_model
        with contextlib.ExitStack() as stack:
            if self.folder is not None:
                stack.enter_context(self.signals.heard())
            stack.callback(hold_encoders, self.model, False)
            hold_encoders(self.model, False)  # a training that another one follows may have held them
            parallel.broadcast_parameters(self.model)
            self._open(train, val)
            goes_on = self._prepare(stack, resume, force)
            if on_start and parallel.is_main():
                on_start(goes_on)
            self.signals.preparing = False
            folder = self.folder if parallel.is_main() else None
            known = described(self.model, self.config, self.train, self.val, self.feed.steps)
            known = {"identity": self.identity, **known, **(facts or {})}
            self.record = RunRecord(folder, known, step=self.state.step, resume=resume)
            stack.enter_context(self.record)
            self.table = stack.enter_context(
                ProgressTable(
                    self.total,
                    self.state.step,
                    self.progress and parallel.is_main(),
                    epochs=self.config.epochs,
                    history=self.state.history,
                    device=str(self.model.device),
                )
            )
            self.board = stack.enter_context(self._board())
            finished = self._epochs(on_epoch)
            if finished:
                self._finish()
                self.record.finish()
        state, skipped = self.state, () if isinstance(self.train, PairShards) else self.train.skipped
        return TrainResult(
            state.history,
            state.best_epoch,
            state.best_rsum,
            state.seconds,
            skipped,
            self.folder,
            next(filter(None, parallel.gather_objects(self.signals.asked)), ""),
            finished,
        )

    # Before the first step.
    def _open(self, train: PairDataset | Inputs | PairShards, val: PairDataset | Inputs) -> None:
        """Open both splits, and plan the batches."""
        model, config = self.model, self.config
        self.train = train if isinstance(train, PairShards) else self._inputs(train, augmented=True)
        count = self.train.num_images if isinstance(self.train, PairShards) else self.train.dataset.num_images
        if count < 2:
            raise TrainingError(f"{count} training picture; a batch needs two or more")
        if isinstance(self.train, PairShards):
            self.feed: Feed = ShardFeed(self.train, model, config, self.shuffle_buffer)
        else:
            self.feed = PairFeed(self.train, model, config)
        self.val = self._inputs(val, augmented=False)
        if self.val.dataset.split == "test":
            raise TrainingError("the test split must not choose the epoch: give the validation split as val")
        self.total = config.epochs * self.feed.steps

    def _inputs(self, data: PairDataset | Inputs, augmented: bool) -> Inputs:
        if isinstance(data, Inputs):
            return data
        change = augmentation(self.config) if augmented else None
        with parallel.main_first() if self.cache else contextlib.nullcontext():
            return open_inputs(
                self.model, data, cache=self.cache, workers=self.config.workers, augment=change, shared=not self.cache
            )

    def _board(self) -> Any:
        """TensorBoard's curves, where they are asked for and there is a folder."""
        if not self.config.tensorboard or self.folder is None or not parallel.is_main():
            return contextlib.nullcontext()
        return Board(self.folder / "tensorboard", self.state.step)

    def _prepare(self, stack: contextlib.ExitStack, resume: bool, force: bool) -> bool:
        """Make optimiser, state and watch; take up or clear what the run's folder holds; tell whether it goes on."""
        config = self.config
        groups = parameter_groups(self.model, self.step.infonce, config)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.state = Progress()
        self.states: dict[str, Any] = {}
        self.best: dict[str, torch.Tensor] = {}
        self.identity = identity_of(self.model, config, self.train, self.val, self.shuffle_buffer)
        if self.identity["train"] == self.identity["val"]:
            raise TrainingError("the same pairs would train and choose the epoch: give the validation split as val")
        self.saved, self.nan = time.monotonic(), NanPolicy(config.max_nan_steps)
        self.watch = CollapseWatch(
            margin=config.margin,
            score_scale=self.model.num_text_blocks if config.score_scale == "sum" else 1,
            steps_an_epoch=self.feed.steps,
            fallback=config.on_collapse == "all_negatives",
        )
        self.checkpoints = None if self.folder is None else Checkpoints(self.folder, self.identity)
        if self.folder is None or self.checkpoints is None:
            return False
        stack.enter_context(self.checkpoints.owned())
        if resume and (found := self.checkpoints.load(self.model, self.step, self.optimizer)):
            self.state, self.states = found
            self.watch.load(self.state.watch["collapse"])
            self.nan.load(self.state.watch["nan"])
            log.info("going on from epoch %d, step %d", self.state.epoch + 1, self.state.step)
            return True
        with parallel.main_first():
            if not force:
                refuse_to_replace(self.folder, resume)
        self.checkpoints.clear()
        if parallel.is_main():
            shutil.rmtree(self.folder / MODEL, ignore_errors=True)
            for left in self.folder.glob(f".{MODEL}.*"):
                shutil.rmtree(left, ignore_errors=True)
            for name in (HISTORY, CURVES):
                (self.folder / name).unlink(missing_ok=True)
        return False

    # Epochs and steps.
    def _epochs(self, on_epoch: Callable[[dict[str, Any]], None] | None) -> bool:
        """Train until the last epoch, or until validation no longer gets better; False: a signal asked for an end."""
        while not self._over():
            try:
                self._train_epoch()
                report = self._validate()
            except _StoppedError:
                return False
            entry = self._entry(report)
            self._keep(entry, report.rsum)
            self.table.epoch(entry)
            if self.board is not None:
                self.board.epoch(self.state.step - 1, entry)
            if on_epoch:
                on_epoch(entry)
        return True

    def _over(self) -> bool:
        state, patience = self.state, self.config.patience
        rsums = [entry["val"]["rsum"] for entry in state.history]
        if patience is not None and rsums and len(rsums) - 1 - rsums.index(max(rsums)) >= patience:
            log.info("no better validation rSum in %d epochs: stopped after %d", patience, state.epoch)
            return True
        return state.epoch >= self.config.epochs

    def _train_epoch(self) -> None:
        """Take what is left of an epoch's steps."""
        state, config, epoch = self.state, self.config, self.state.epoch
        torch.manual_seed(epoch_seed(config.seed, epoch, parallel.rank()))
        states, self.states = self.states, {}
        if not state.batches:
            states = {}
            self.nan.start_epoch()
        if states.get("random"):
            set_random_states(states["random"])
        self.model.train()
        hold_encoders(self.model, epoch < config.frozen_epochs)
        if epoch == config.frozen_epochs and epoch and not state.batches:
            self._note(f"epoch {epoch + 1}: the encoders are trained from here on")
        self._stop_if_asked(states.get("feed"))
        feed = Ahead(self.feed.epoch(epoch, state.batches, states.get("feed")), depth=1)
        with contextlib.closing(feed):
            while True:
                started = time.perf_counter()
                fed = next(feed, None)
                waited = time.perf_counter() - started
                if fed is None:
                    return
                parts, pairs = self._one_step(fed, epoch)
                state.seconds["wait"] += waited
                state.seconds["train"] += time.perf_counter() - started
                self.table.step(parts, pairs, waited)
                if self.board is not None:
                    self.board.step(state.step - 1, parts)
                self._save_if_due(fed.states)

    def _one_step(self, fed: Fed, epoch: int) -> tuple[dict[str, float], int]:
        """Take one step and keep count; return its figures and the pairs of its whole batch."""
        state, config = self.state, self.config
        set_rates(self.optimizer, rate_factor(config, state.step, self.total, epoch))
        hardest = epoch >= config.hard_negative_start_epoch and not self.watch.all_negatives
        self.step.hinge.hardest = hardest
        unread = isinstance(self.feed, ShardFeed) and parallel.any_rank(fed.batch is None)
        if fed.batch is None or unread:
            parts: dict[str, float] | None = {"left_out": 1.0}
        else:
            parts = self.step(fed.batch.to(self.model.device), self.optimizer, epoch)
        state.step, state.batches = state.step + 1, state.batches + 1
        if not self.nan.may_go_on(parts is not None):
            raise TrainingError(self.nan.message(epoch, state.step, config.lr, config.encoder_lr))
        if parts is None or "loss" not in parts:
            for name in parts or ():
                state.counts[name] = state.counts.get(name, 0) + 1
            return {}, 0
        pairs = int(parts.pop("pairs"))
        state.counts["steps"] = state.counts.get("steps", 0) + 1
        for name, value in parts.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        self._say(
            self.watch.step(
                None if self.step.is_infonce(epoch) else parts["matching"],
                batch_size=pairs,
                hardest=hardest,
                spread_images=parts["spread_images"],
                spread_texts=parts["spread_texts"],
            )
        )
        return parts, pairs

    def _say(self, message: str | None) -> None:
        """Warn of a collapse, and remember it for the epoch's entry."""
        if message is not None:
            self.state.collapse = message
            self._note(message)

    def _note(self, message: str) -> None:
        """Warn, above the bar where there is one."""
        if parallel.is_main():
            (self.table.note if self.progress else log.warning)(message)

    def _save_if_due(self, feed_states: dict[str, Any]) -> None:
        """Write a checkpoint when it is time, or when a signal asks for an end, and then end."""
        if self.checkpoints is None:
            return
        due = time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes
        if parallel.any_rank(due or bool(self.signals.asked)) and not self._stop_if_asked(feed_states):
            self._save(feed_states)

    def _stop_if_asked(self, feed_states: dict[str, Any] | None) -> bool:
        """End after a checkpoint where a signal asked for it, in whichever process; False: none did."""
        if self.checkpoints is not None and parallel.any_rank(bool(self.signals.asked)):
            self._save(feed_states)
            raise _StoppedError
        return False

    # Validation, checkpoints.
    def _validate(self) -> RetrievalReport:
        """Measure the model on validation; a signal ends it, and a run that goes on begins with it."""
        started = time.perf_counter()
        precision: Precision = "fp32" if self.config.precision == "fp32" else "auto"

        def tick(done: int) -> None:
            self._stop_if_asked(None)

        tick(0)
        alone = parallel.world() == 1  # else the processes have not equally many batches to ask each other after
        report = evaluate(
            self.model,
            self.val.dataset,
            inputs=self.val,
            bootstrap=0,
            precision=precision,
            tick=tick if alone else None,
            shared=True,
        )
        report = parallel.broadcast_object(report)
        tick(0)
        self.state.seconds["validate"] += time.perf_counter() - started
        return report

    def _entry(self, report: RetrievalReport) -> dict[str, Any]:
        """Make the epoch's entry of the history."""
        state, config, epoch = self.state, self.config, self.state.epoch
        val = self.val.dataset
        self._say(
            self.watch.validated(
                epoch,
                i2t=report.i2t.recalls,
                t2i=report.t2i.recalls,
                num_images=val.num_images,
                num_texts=val.num_pairs,
            )
        )
        steps = max(1, state.counts.get("steps", 0))
        return {
            "epoch": epoch,
            "lr": set_rates(self.optimizer, rate_factor(config, state.step - 1, self.total, epoch)),
            **{name: value / steps for name, value in state.sums.items()},
            "skipped_steps": self.nan.skipped + state.counts.get("overflow", 0),
            "without_negatives": state.counts.get("left_out", 0),
            "frozen": epoch < config.frozen_epochs,
            "collapse": state.collapse,
            "val": figures(report),
        }

    def _keep(self, entry: dict[str, Any], rsum: float) -> None:
        """Close an epoch: the history, the best weights, a checkpoint."""
        state = self.state
        if rsum >= state.best_rsum:
            state.best_rsum, state.best_epoch = rsum, entry["epoch"]
            if self.checkpoints is None:
                self.best = {name: value.clone() for name, value in trained_state(self.model, self.step).items()}
            else:
                self.checkpoints.keep_best(entry["epoch"], self.model, self.step)
        state.history.append(entry)
        state.epoch, state.batches, state.sums, state.counts, state.collapse = entry["epoch"] + 1, 0, {}, {}, None
        if self.checkpoints is not None:
            self._save(None)

    def _save(self, feed_states: dict[str, Any] | None) -> None:
        """Write a checkpoint, the history and run.json."""
        assert self.checkpoints is not None and self.folder is not None
        state, started = self.state, time.perf_counter()
        state.watch = {"collapse": self.watch.state(), "nan": self.nan.state()}
        news = {key: why for part in parallel.gather_objects(self.feed.unreadable) for key, why in part.items()}
        if news := {key: why for key, why in news.items() if key not in state.unreadable}:
            key, why = next(iter(news.items()))
            self._note(f"{len(news)} pictures of the shards cannot be read and are left out, such as {key}: {why}")
            state.unreadable.update(news)
        self.checkpoints.save(state, self.model, self.step, self.optimizer, feed_states)
        state.seconds["save"] += time.perf_counter() - started
        self.saved = time.monotonic()
        try:
            if parallel.is_main():
                files.write_json(self.folder / HISTORY, state.history)
            self._record_progress()
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error}; the checkpoint of step {state.step} is written: make room and go on with --resume",
            ) from error

    def _record_progress(self, **facts: Any) -> None:
        state = self.state
        if state.unreadable:
            facts["unreadable"] = state.unreadable
        told: dict[str, Any] = {"seconds": state.seconds, "history": state.history, "best_epoch": state.best_epoch}
        self.record.update(state.step, **told, **facts)

    def _finish(self) -> None:
        """Take the best epoch's weights, and write what a user of the run's folder looks for."""
        state = self.state
        if state.best_epoch < 0:
            raise TrainingError(f"the best epoch's weights in {self.folder} are damaged: start anew (--force)")
        with parallel.main_first():
            if self.checkpoints is None:
                load_trained(self.model, self.step, self.best)
            elif parallel.is_main():
                load_trained(self.model, self.step, self.checkpoints.best(state.best_epoch))
        parallel.broadcast_parameters(self.model)
        facts: dict[str, Any] = {}
        if self.model.groups is not None:
            facts["views_overlap"] = views_overlap(self.model, self.train)
        self.model.eval()
        if self.save_model:
            self.model.calibration = learn_calibration(self.model, self.val, shared=True)
        if self.folder is None or not parallel.is_main():
            return
        if self.save_model:
            self.model.save_pretrained(self.folder / MODEL, force=True, extra={"seed": self.config.seed})
            facts["fingerprint"] = self.model.fingerprint
        files.write_json(self.folder / HISTORY, state.history)
        draw_curves({"": state.history}, self.folder / CURVES)
        self._record_progress(**facts)
