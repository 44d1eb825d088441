"""The training loop on accelerate: schedules, both losses, selection on validation, checkpoints that survive a kill.

Knows the model's forward pass, the losses and the evaluation. Everything random in an epoch derives from (seed, epoch),
so that a run resumed after an epoch goes on exactly as if it had not stopped.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from avse import checkpoint, files
from avse.config import TrainConfig
from avse.data import PairDataset, Skip
from avse.data.transforms import crop_and_flip
from avse.evaluate import evaluate
from avse.inputs import Inputs, open_inputs
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss, InfoNCE, true_matches
from avse.metrics import RetrievalReport
from avse.model import AVSE
from avse.plots import draw_curves
from avse.sampling import mean_overlap
from avse.scoring import aeom

log = logging.getLogger(__name__)

SMALL_VALIDATION = 50


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, what was found and what to change."""


@dataclass
class TrainResult:
    """What a training left."""

    history: list[dict[str, Any]]
    """One entry an epoch: rates, loss parts, skipped steps, validation figures. No times: equal runs are equal."""
    best_epoch: int
    best_rsum: float
    seconds: dict[str, float]
    """Wall-clock seconds of `train` and `validate`."""
    skipped: tuple[Skip, ...] = ()
    folder: Path | None = None


@dataclass
class _Progress:
    """What a checkpoint holds beside the weights."""

    epoch: int = 0
    step: int = 0
    best_epoch: int = -1
    best_rsum: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"train": 0.0, "validate": 0.0})


class Trainer:
    """Train a model and keep its best epoch by validation rSum.

    Args:
        model: trained in place; after `fit` it holds the best epoch's weights.
        config: how.
        cache: folder for the grids of a frozen encoder; None reads pictures every time.
        progress: show a bar with rate and time left.
    """

    def __init__(
        self,
        model: AVSE,
        config: TrainConfig | None = None,
        *,
        cache: str | Path | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.config, self.cache, self.progress = model, config or TrainConfig(), cache, progress
        config = self.config
        AcceleratorState._reset_state(reset_partial_state=True)  # else a trainer of another precision is refused
        self.accelerator = Accelerator(
            mixed_precision="bf16" if config.precision == "bf16" else "no", cpu=model.device.type == "cpu"
        )
        if self.accelerator.num_processes > 1:
            raise TrainingError(f"{self.accelerator.num_processes} processes; this trainer runs in one: start it alone")
        if config.word_augment and (model.text_encoder.frozen or not model.text_encoder.can_augment):
            raise TrainingError(
                "word_augment is true, but the text encoder is frozen or has no mask token; set train.word_augment to "
                "false, or text_encoder.frozen to false with a BERT-family encoder"
            )
        self.hinge = HardNegativeTripletLoss(config.margin)
        self.infonce = InfoNCE(config.temperature, config.learn_temperature).to(model.device)
        self.decorrelation = CrossViewDecorrelationLoss(config.off_diagonal_weight, config.decorrelation_form)

    def fit(
        self,
        train: PairDataset | Inputs,
        val: PairDataset | Inputs,
        *,
        out: str | Path | None = None,
        resume: bool = False,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> TrainResult:
        """Train, and select on validation.

        Args:
            train: the pairs to learn from, or the split already open.
            val: the pairs that select the epoch. Never the test split.
            out: folder for model/ (the best epoch), checkpoint/ (the last), history.json, curves.png and run.json.
            resume: go on from `out`/checkpoint, if there is one.
            on_epoch: called with each new entry of the history.

        Raises:
            TrainingError: too few pairs, non-finite losses in a row, or a checkpoint of other settings or data.
        """
        train, val = self._open(train, augment=True), self._open(val, augment=False)
        if train.dataset.num_images < 2:
            raise TrainingError(f"{train.dataset.num_images} training picture; a batch needs two or more")
        batches = self._batches_an_epoch(train.dataset)
        optimizer = torch.optim.AdamW(self._parameter_groups(), fused=False)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.state = _Progress()
        self.identity = {
            "config": self.config.model_dump(mode="json"),
            "model": self.model.config.model_dump(mode="json"),
            "init_from": self.model.facts.get("init_from"),
            "train": train.dataset.fingerprint(),
            "val": val.dataset.fingerprint(),
            "pictures": [train.images.content, val.images.content],
            "encoders": [self.model.image_encoder.fingerprint(), self.model.text_encoder.fingerprint()],
        }
        self.facts = self._facts(train, val, batches)
        self.best: dict[str, Tensor] = {}
        folder = Path(out) if out is not None else None
        if folder is not None and resume:
            self._load(folder / "checkpoint")
        total = self.config.epochs * batches
        bar = tqdm(total=total, initial=self.state.step, unit="step", desc="training", disable=not self.progress)
        with bar:
            for epoch in range(self.state.epoch, self.config.epochs):
                entry = self._epoch(epoch, train, total, bar)
                report = self._validate(val)
                entry["val"] = _figures(report)
                self._keep(entry, report.rsum)
                if folder is not None:
                    self._save(folder)
                if on_epoch:
                    on_epoch(entry)
        self._load_trained(self.best)
        if self.model.groups is not None:
            self.facts["views_overlap"] = self._overlap(train)
        self.model.eval()
        if folder is not None:
            self._finish(folder, train, val)
        state = self.state
        return TrainResult(state.history, state.best_epoch, state.best_rsum, state.seconds, train.skipped, folder)

    def _facts(self, train: Inputs, val: Inputs, batches: int) -> dict[str, Any]:
        """Say what the figures stand with: steps, overlap of the views, the floor of L_reg, too small a validation."""
        config, model, data = self.config, self.model, train.dataset
        views = model.config.num_views
        facts: dict[str, Any] = {"steps_an_epoch": batches, "views": views}
        log.info("%d steps an epoch of %d pictures and %d captions", batches, data.num_images, data.num_pairs)
        if views > 1:
            facts["views_overlap"] = self._overlap(train)
            log.info("two views of a picture share %.0f %% of their cells", 100 * facts["views_overlap"])
        if config.decorrelation_weight and views > 1:
            size = min(config.batch_size, data.num_images)
            facts["decorrelation_floor"] = self.decorrelation.floor(size, model.config.embed_dim)
            log.info("L_reg cannot fall below %.4f in batches of %d", facts["decorrelation_floor"], size)
        if val.dataset.num_images < SMALL_VALIDATION:
            log.warning(
                "only %d validation pictures choose the epoch: the choice is mostly chance below some %d",
                val.dataset.num_images,
                SMALL_VALIDATION,
            )
        return facts

    def _overlap(self, train: Inputs) -> float:
        """Measure what two training views share: over drawn ones, or over the first pictures where they are learnt."""
        encoder, groups = self.model.image_encoder, self.model.groups
        cells = encoder.grid[0] * encoder.grid[1]
        if groups is None:
            drawn = self.model.sampling.train()(encoder.grid, 256, torch.Generator().manual_seed(0))
            return round(mean_overlap(drawn, cells), 4)
        self.model.eval()
        groups.train()
        with torch.inference_mode():
            seen = train.images.batch(range(min(64, train.dataset.num_images))).to(self.model.device)
            tokens = encoder(seen) if seen.ndim == 4 else seen
            return round(mean_overlap(groups(tokens[:, encoder.num_prefix :])[0].cpu(), cells), 4)

    # One epoch.
    def _epoch(self, epoch: int, train: Inputs, total: int, bar: Any) -> dict[str, Any]:
        started = time.perf_counter()
        seed = int(np.random.SeedSequence([self.config.seed, epoch]).generate_state(1)[0])
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        random = np.random.default_rng(seed)
        self.model.train()
        sums: dict[str, float] = {}
        skipped = in_a_row = 0
        steps = 0
        for images, captions in self._batches(train.dataset, random):
            rates = self._set_rates(self.state.step, total, epoch)
            parts = self._step(train, images, captions, epoch, generator, random)
            self.state.step += 1
            if parts is None:
                skipped, in_a_row = skipped + 1, in_a_row + 1
                if in_a_row > self.config.max_nan_steps:
                    raise TrainingError(
                        f"loss or gradient not finite in {in_a_row} steps in a row (epoch {epoch}, step "
                        f"{self.state.step}); lower train.lr ({self.config.lr:g}) or train.encoder_lr "
                        f"({self.config.encoder_lr:g}), or use fp32"
                    )
            else:
                in_a_row, steps = 0, steps + 1
                for name, value in parts.items():
                    sums[name] = sums.get(name, 0.0) + value
            bar.update(1)
            bar.set_postfix_str(
                f"epoch {epoch + 1}/{self.config.epochs}, loss {sums.get('loss', 0) / max(1, steps):.3f}, "
                + (f"val rSum {self.state.best_rsum:.1f}" if self.state.history else "not yet validated")
            )
        self.state.seconds["train"] += time.perf_counter() - started
        means = {name: value / max(1, steps) for name, value in sums.items()}
        return {"epoch": epoch, "lr": rates, **means, "skipped_steps": skipped}

    def _step(
        self,
        train: Inputs,
        images: np.ndarray,
        captions: np.ndarray,
        epoch: int,
        generator: torch.Generator,
        random: np.random.Generator,
    ) -> dict[str, float] | None:
        """Take one step; None when loss or gradient were not finite and the step was left out."""
        config, model, device = self.config, self.model, self.model.device
        texts = [train.dataset.captions[i] for i in captions]
        tokens, mask = train.texts.batch(texts, generator if config.word_augment else None)
        pixels = train.images.batch(images, random if config.image_augment else None)
        views, seen = self._draw_views(len(images), generator)
        matches = true_matches(images.tolist(), texts).to(device)
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        with self.accelerator.autocast():
            pooled, image_blocks, text_blocks = model(
                pixels.to(device), tokens.to(device), mask.to(device), views, seen
            )
        scores = aeom(image_blocks, text_blocks)
        if config.score_scale == "mean":
            scores = scores / model.num_text_blocks
        matching = self._matching(scores, matches, epoch)
        regular = self.decorrelation(pooled.float()) if config.decorrelation_weight else scores.new_zeros(())
        loss = matching + config.decorrelation_weight * regular
        self.optimizer.zero_grad()
        if not bool(torch.isfinite(loss)):
            self._put_back(buffers)
            return None
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self._trained(), config.clip_norm or math.inf)
        if not bool(torch.isfinite(norm)):
            self.optimizer.zero_grad()
            self._put_back(buffers)
            return None
        self.optimizer.step()
        parts = {"loss": loss, "matching": matching, "decorrelation": regular, "gradient": norm}
        return {name: value.item() for name, value in parts.items()}

    def _draw_views(self, batch: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        """Draw the cells of each view (B, V, K); where groups choose, the features they choose from (B, prefix + G)."""
        encoder, most = self.model.image_encoder, self.config.size_augment
        if self.model.groups is None:
            views = self.model.sampling(encoder.grid, batch, generator)
            return (_drop_cells(views, most, generator) if most else views).to(self.model.device), None
        if not most:
            return None, None
        prefix, cells = encoder.num_prefix, encoder.grid[0] * encoder.grid[1]
        left = _drop_cells(torch.arange(cells).expand(batch, 1, cells), most, generator)[:, 0]
        seen = torch.arange(prefix + cells).expand(batch, -1) < prefix
        return None, seen.scatter(1, left + prefix, True).to(self.model.device)

    def _put_back(self, buffers: dict[str, Tensor]) -> None:
        """Undo what a step that is left out did to running statistics."""
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])

    def _matching(self, scores: Tensor, matches: Tensor, epoch: int) -> Tensor:
        """L_m of this epoch: InfoNCE, or hinge with all negatives first and the hardest afterwards."""
        warmup = self.config.infonce_warmup_epochs
        if self.config.objective == "infonce" or epoch < warmup:
            return self.infonce(scores, matches)
        self.hinge.hardest = epoch >= self.config.hard_negative_start_epoch
        return self.hinge(scores, matches)

    def _batches_an_epoch(self, dataset: PairDataset) -> int:
        items = dataset.num_images if self.config.epoch_of == "images" else dataset.num_pairs
        return max(1, math.ceil(items / self.config.batch_size))

    def _batches(self, dataset: PairDataset, random: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield image rows and caption rows of batches of nearly equal size: nothing is dropped, none is tiny."""
        if self.config.epoch_of == "pairs":
            captions = random.permutation(dataset.num_pairs)
        else:
            own = np.argsort(dataset.text_to_image, kind="stable")
            counts = np.bincount(dataset.text_to_image, minlength=dataset.num_images)
            starts = np.cumsum(counts) - counts
            having = np.flatnonzero(counts)
            picked = starts[having] + (random.random(len(having)) * counts[having]).astype(np.int64)
            captions = random.permutation(own[picked])
        for part in np.array_split(captions, self._batches_an_epoch(dataset)):
            yield dataset.text_to_image[part], part

    # Rates and parameters.
    def _parameter_groups(self) -> list[dict[str, Any]]:
        encoders = {id(p) for e in (self.model.image_encoder, self.model.text_encoder) for p in e.parameters()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in self._trained():
            rate = self.config.encoder_lr if id(parameter) in encoders else self.config.lr
            decay = self.config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
        return [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": d} for (rate, d), p in groups.items()]

    def _trained(self) -> list[nn.Parameter]:
        return [p for module in (self.model, self.infonce) for p in module.parameters() if p.requires_grad]

    def _set_rates(self, step: int, total: int, epoch: int) -> list[float]:
        factor = rate_factor(self.config, step, total, epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        return sorted({group["lr"] for group in self.optimizer.param_groups}, reverse=True)

    # Validation, checkpoints.
    def _open(self, data: PairDataset | Inputs, augment: bool) -> Inputs:
        if isinstance(data, Inputs):
            return data
        config = self.config
        transform = crop_and_flip if augment and config.image_augment else None
        return open_inputs(self.model, data, cache=self.cache, workers=config.workers, augment=transform)

    def _validate(self, val: Inputs) -> RetrievalReport:
        started = time.perf_counter()
        report = evaluate(self.model, val.dataset, inputs=val, bootstrap=0)
        self.state.seconds["validate"] += time.perf_counter() - started
        return report

    def _keep(self, entry: dict[str, Any], rsum: float) -> None:
        state = self.state
        if rsum >= state.best_rsum:
            state.best_rsum, state.best_epoch, self.best = rsum, entry["epoch"], self._trained_state()
        state.history.append(entry)
        state.epoch = entry["epoch"] + 1

    def _trained_state(self) -> dict[str, Tensor]:
        """Weights and statistics that training changes: a frozen encoder's are not repeated in every checkpoint."""
        frozen = [n for n in ("image_encoder", "text_encoder") if getattr(self.model, n).frozen]
        tensors = {f"model.{n}": v for n, v in self.model.state_dict().items() if n.split(".")[0] not in frozen}
        tensors |= {f"infonce.{n}": v for n, v in self.infonce.state_dict().items()}
        return {name: value.detach().cpu().clone() for name, value in tensors.items()}

    def _load_trained(self, tensors: dict[str, Tensor]) -> None:
        for name, module in (("model.", self.model), ("infonce.", self.infonce)):
            own = {key[len(name) :]: value for key, value in tensors.items() if key.startswith(name)}
            module.load_state_dict(own, strict=name != "model.")

    def _save(self, folder: Path) -> None:
        def fill(target: Path) -> None:
            checkpoint.save_tensors(target / "last.safetensors", self._trained_state())
            checkpoint.save_tensors(target / "best.safetensors", self.best)
            torch.save(self.optimizer.state_dict(), target / checkpoint.STATE)
            state = {k: v for k, v in vars(self.state).items()}
            files.write_json(target / "progress.json", state)

        checkpoint.write_folder(folder / "checkpoint", fill, {"identity": self.identity})
        files.write_json(folder / "history.json", self.state.history)

    def _load(self, folder: Path) -> None:
        folder = checkpoint.recover(folder)
        if not folder.exists():
            return
        identity = files.verify_manifest(folder)["identity"]
        for key, value in self.identity.items():
            if identity.get(key) != value:
                raise TrainingError(
                    f"{folder} was written with another {key}: {_first_difference(identity.get(key), value)}; "
                    "resume with the same settings and data, or start anew in another --out"
                )
        self._load_trained(checkpoint.load_tensors(folder / "last.safetensors"))
        self.best = checkpoint.load_tensors(folder / "best.safetensors")
        self.optimizer.load_state_dict(checkpoint.load_state(folder / checkpoint.STATE))
        self.state = _Progress(**json.loads((folder / "progress.json").read_text("utf-8")))

    def _finish(self, folder: Path, train: Inputs, val: Inputs) -> None:
        state = self.state
        self.model.save_pretrained(folder / "model", force=True, extra={"seed": self.config.seed})
        files.write_json(folder / "history.json", state.history)
        draw_curves({"": state.history}, folder / "curves.png")
        skipped = [[s.name, s.reason] for s in (*train.skipped, *val.skipped)]
        run = {
            "identity": self.identity,
            **self.facts,
            "best_epoch": state.best_epoch,
            "best_rsum": state.best_rsum,
            "seconds": state.seconds,
            "skipped": skipped,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "device": str(self.model.device),
        }
        files.write_json(folder / "run.json", run)


def rate_factor(config: TrainConfig, step: int, total: int, epoch: int) -> float:
    """Return what the learning rates are multiplied by at a step.

    >>> c = TrainConfig(schedule="cosine", warmup_steps=10)
    >>> [round(rate_factor(c, s, 110, 0), 3) for s in (0, 9, 10, 60, 109)]
    [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.step_factor ** sum(epoch >= at for at in config.step_epochs)
    return 1.0


def _drop_cells(views: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Keep a random subset of each view's cells: one share for the batch, drawn from [0, most]."""
    batch, count, keep = views.shape
    share = float(torch.rand((), generator=generator)) * most
    left = max(1, keep - int(share * keep))
    order = torch.rand(batch, count, keep, generator=generator).argsort(dim=-1)[..., :left]
    return views.gather(2, order.sort(dim=-1).values)


def _figures(report: RetrievalReport) -> dict[str, Any]:
    aware = report.duplicate_aware
    return {
        "rsum": report.rsum,
        "i2t": {f"r{k}": value for k, value in report.i2t.recalls.items()},
        "t2i": {f"r{k}": value for k, value in report.t2i.recalls.items()},
        "duplicate_aware_rsum": aware.rsum if aware else None,
    }


def _first_difference(old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                return f"{key} {_first_difference(old.get(key), new.get(key))}"
    return f"{old!r} there, {new!r} now"
