"""What encoding for an evaluation and a training step cost, lever by lever, against the plain way (`plain`).

The plain way's numbers are the truth that the other ways are checked against. Every part has a process of its own.
Knows no data set; what it measures on it makes (`shapes`).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from avse.allocator import keep_freed_memory
from avse.benchmarks import in_process, interleaved, peak_bytes
from avse.benchmarks.plain import encode_plainly, pooled_plainly, view_by_view
from avse.benchmarks.rows import at_least, at_most
from avse.benchmarks.shapes import make_batch, make_dataset, make_encoders, make_model
from avse.config import TrainConfig
from avse.evaluate import encode_inputs
from avse.features import resolve_precision
from avse.heads import unit_blocks
from avse.inputs import open_inputs
from avse.losses import CrossViewDecorrelationLoss, InfoNCE, true_matches
from avse.model import AVSE
from avse.scoring import aeom
from avse.texts import text_groups
from avse.trainer.step import Batch, Step

FIELDS = {
    "measure": "encode, step, compile or memory",
    "way": "how",
    "at": "sizes",
    "seconds": "median of the turns",
    "ratio": "times as fast as the first way of the measure; memory: its bytes against the first way's",
    "gain": "times as fast as the row before",
    "share": "of the time, what the bare encoders take at the same precision",
    "error": "largest difference from the plain way: of embeddings; of loss and gradient norm, relative",
    "peak_mib": "largest resident size of the process",
    "targets": "what the issue wants: wanted, found, reached",
    "note": "what one must know of it",
}
"""Field -> what it is."""
TOLERANCE = 1e-5
"""Of fp32 against the plain way."""
LEVERS = {
    "plain": "a call a view, GPO's GRU a set and strided sort, AdamW in a loop",
    "views": "both views in one encoder call",
    "pooling": "GPO's weights once a length, contiguous sort",
    "texts": "texts of like length together: avse's step from here on",
    "fused": "fused AdamW",
    "bf16": "bf16 autocast",
    "recompute": "gradient checkpointing: less memory, more time",
}
"""Lever of a step -> what it changes; each stands on the ones before it."""
_SCRIPT = ("plain", "views", "pooling")
"""Levers without avse's step."""
_HALF = ("bf16", "recompute")
_CONFIG = TrainConfig(decorrelation_weight=0.1)
_RATE = 1e-12
"""So small that no step changes the weights."""
_Way = Callable[[], object]


class DisagreementError(RuntimeError):
    """A way that should compute the same numbers as the plain way does not."""


@dataclass(frozen=True)
class Sizes:
    """What is measured."""

    images: int = 16
    """Pictures that are encoded."""
    captions: int = 5
    """Captions of each."""
    batch: int = 8
    """Pairs of a training step."""
    together: int = 16
    """Pictures or texts that are encoded at a time."""
    chunk: int = 16
    """Pairs of the batch whose memory is compared with, and of a chunk."""
    large: int = 256
    """Pairs of the batch in chunks."""
    small: bool = False
    """Tiny encoders in the place of ViT-B/16 and BERT-base: to try it, their figures say nothing."""


def measure_training(
    sizes: Sizes, *, parts: Sequence[str], runs: int = 3, threads: int = 1, device: str = "cpu"
) -> Iterator[dict[str, Any]]:
    """Measure the chosen parts.

    Args:
        sizes: pictures and batches.
        parts: some of encode, step, compile, memory.
        runs: timed turns, of which medians are taken; memory is measured once.
        threads: cores that a process may use.
        device: where the model computes, "cpu" or "cuda"; the targets are those of a processor.

    Yields:
        Rows of `FIELDS`.

    Raises:
        DisagreementError: a way in fp32 gives other numbers than the plain way.
    """
    with TemporaryDirectory() as temporary:
        work = Path(temporary)
        make_encoders(work, sizes.small)
        for part, measure in (("encode", _encode), ("step", _step), ("compile", _compile)):
            if part in parts:
                rows = in_process(threads, measure, work, sizes, runs, device)
                yield from (row if device == "cpu" else row | {"targets": []} for row in rows)
        if "memory" in parts:
            yield from _memory(work, sizes, threads, device)


def _encode(work: Path, sizes: Sizes, runs: int, device: str) -> list[dict[str, Any]]:
    keep_freed_memory()
    model = make_model(work).to(device)
    inputs = open_inputs(model, make_dataset(work, sizes.images, sizes.captions))
    groups = text_groups(inputs.dataset.captions)
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def keep(way: str, embed: Callable[[], tuple[np.ndarray, np.ndarray]]) -> None:
        found[way] = embed()

    def ours(precision: Any) -> tuple[np.ndarray, np.ndarray]:
        return encode_inputs(model, inputs, sizes.together, precision=precision)

    ways: dict[str, _Way] = {"plain": lambda: keep("plain", lambda: encode_plainly(model, inputs, sizes.together))}
    ways["avse fp32"] = lambda: keep("avse fp32", lambda: ours("fp32"))
    if _has_half(device):
        ways["avse bf16"] = lambda: keep("avse bf16", lambda: ours("bf16"))
    with torch.inference_mode():
        medians = interleaved(
            {**ways, "bare": lambda: _bare_encode(model, inputs, sizes.together)}, runs, device=device
        )
    captions = sizes.images * sizes.captions
    at = f"{sizes.images} pictures, {captions} captions, {sizes.together} at a time"
    rows = []
    for way in ways:
        rows.append(row := _row("encode", way, at, medians[way], medians["plain"]))
        images, texts = found[way]
        texts = texts if way == "plain" else texts[groups]
        row["error"] = max(float(np.abs(a - b).max()) for a, b in zip((images, texts), found["plain"]))
        if way == "avse fp32":
            row["share"] = medians["bare"] / medians[way]
            _check(row)
        if way != "plain":
            row["targets"] = [at_least(4.5 if way == "avse fp32" else 7.0, row, "ratio")]
    return rows


def _bare_encode(model: AVSE, inputs: Any, together: int) -> None:
    """Encode every picture and text once, without the heads."""
    for start in range(0, inputs.dataset.num_images, together):
        rows = range(inputs.dataset.num_images)[start : start + together]
        model.image_tokens(inputs.images.batch(rows).to(model.device))
    ordered = sorted(inputs.dataset.captions, key=lambda caption: caption.count(" "))
    for start in range(0, len(ordered), together):
        tokens = model.text_encoder.tokenize(ordered[start : start + together])
        model.text_encoder(tokens.input_ids.to(model.device), tokens.attention_mask.to(model.device))


def _step(work: Path, sizes: Sizes, runs: int, device: str) -> list[dict[str, Any]]:
    keep_freed_memory()
    levers = _Levers(work, sizes.batch, device)
    names = [name for name in LEVERS if _has_half(device) or name not in _HALF]
    numbers = {name: levers.numbers(name) for name in names}
    ways: dict[Any, _Way] = {name: lambda name=name: levers.step(name) for name in names}  # type: ignore[misc]
    for half in (False, True)[: 1 + _has_half(device)]:
        ways[half] = lambda half=half: levers.bare(half)  # type: ignore[misc]
    medians = interleaved(ways, runs, device=device)
    rows: list[dict[str, Any]] = []
    for name in names:
        row = _row("step", name, f"batch {sizes.batch}", medians[name], medians["plain"])
        row |= {"note": LEVERS[name], "share": medians[name in _HALF] / medians[name]}
        row["gain"] = rows[-1]["seconds"] / row["seconds"] if rows else None
        row["error"] = max(abs(a - b) / abs(b) for a, b in zip(numbers[name], numbers["plain"]))
        if name not in _HALF:
            _check(row)
        if name in ("fused", "bf16"):
            row["targets"] = [at_least(1.0 if name == "fused" else 1.6, row, "ratio")]
        rows.append(row)
    return rows


class _Levers:
    """A model, a batch, and steps on it."""

    def __init__(self, work: Path, count: int, device: str) -> None:
        self.model = make_model(work).to(device)
        self.batch = make_batch(self.model, count).to(self.model.device)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizers = [
            torch.optim.AdamW(self.parameters, lr=_RATE, weight_decay=0.0, foreach=False, fused=fused)
            for fused in (False, True)
        ]

    def numbers(self, lever: str) -> tuple[float, float]:
        """Return the loss, and the norm of the gradient that is left in the parameters."""
        self.model.zero_grad()
        loss = self._backward(lever) if lever in _SCRIPT else self._avse(lever).backward(self.batch, 1)["loss"]
        return float(loss), float(
            torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        )

    def step(self, lever: str) -> None:
        """Take a step with a lever and all before it."""
        if lever in _SCRIPT:
            self.model.zero_grad()
            self._backward(lever)
            torch.nn.utils.clip_grad_norm_(self.parameters, _CONFIG.clip_norm or 0.0)
            self.optimizers[0].step()
        elif self._avse(lever)(self.batch, self.optimizers[lever != "texts"], 1) is None:
            raise DisagreementError(f"step, {lever}: its loss or gradient is not finite")

    def bare(self, half: bool) -> None:
        """Go through the encoders alone, there and back."""
        self.model.zero_grad()
        _keep_activations(self.model)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=half):
            images = self.model.image_tokens(self.batch.images, self.batch.views)
            texts = self.model.text_encoder(self.batch.texts, self.batch.mask)
        torch.autograd.backward([images, texts], [torch.ones_like(images), torch.ones_like(texts)])

    def _avse(self, lever: str) -> Any:
        precision = "bf16" if lever in _HALF else "fp32"
        _keep_activations(self.model)
        return Step(self.model, _config(precision=precision, gradient_checkpointing=lever == "recompute"))

    def _backward(self, lever: str) -> torch.Tensor:
        model, batch = self.model, self.batch
        assert batch.views is not None
        _keep_activations(model)
        with pooled_plainly(model, lever != "pooling"):
            if lever == "plain":
                views = view_by_view(model, batch.images, batch.views)
            else:
                views = model.embed_views(batch.images, None, batch.views)
            texts = model.embed_tokens(batch.texts, batch.mask)
        scores = aeom(unit_blocks(model.unit_views(views), model.block_width), texts) / model.num_text_blocks
        regular = CrossViewDecorrelationLoss(_CONFIG.off_diagonal_weight)(views)
        matches = true_matches(batch.image_ids, batch.captions).to(model.device)
        loss = InfoNCE(_CONFIG.temperature).to(model.device)(scores, matches)
        loss = loss + _CONFIG.decorrelation_weight * regular
        loss.backward()
        return loss.detach()


def _compile(work: Path, sizes: Sizes, runs: int, device: str) -> list[dict[str, Any]]:
    """Take the whole step with and without torch.compile, in bf16 where that is fast."""
    precision = resolve_precision(device, "auto")
    at = f"batch {sizes.batch}, {precision}"
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        return [_row("compile", "torch.compile", at) | {"note": "not measured: there is no C++ compiler"}]
    keep_freed_memory()
    ways: dict[str, _Way] = {}
    first = {}
    for way, compiled in (("without", False), ("torch.compile", True)):
        model, step = _trained(work, _config(precision=precision, compile=compiled), device)
        batch, started = make_batch(model, sizes.batch).to(model.device), time.perf_counter()
        step(batch)
        first[way] = time.perf_counter() - started
        ways[way] = lambda step=step, batch=batch: step(batch)  # type: ignore[misc]
    medians = interleaved(ways, runs, device=device)
    rows = [_row("compile", way, at, medians[way], medians["without"]) for way in ways]
    rows[1]["note"] = f"its first step took {first['torch.compile'] - first['without']:.0f} s longer: it compiles"
    return rows


def _memory(work: Path, sizes: Sizes, threads: int, device: str) -> Iterator[dict[str, Any]]:
    chunk, large = sizes.chunk, sizes.large
    ways: dict[str, tuple[int, dict[str, Any]]] = {
        f"batch {chunk}": (chunk, {}),
        f"batch {chunk}, gradient checkpointing": (chunk, {"gradient_checkpointing": True}),
        f"batch {large} by chunks of {chunk}": (large, {"chunk_size": chunk}),
    }
    first = 0
    for way, (count, changes) in ways.items():
        peak, seconds = in_process(threads, _peak, work, count, changes, device)
        first = first or peak
        row = _row("memory", way, "one step, fp32", seconds) | {"peak_mib": round(peak / 2**20), "ratio": peak / first}
        if "chunk_size" in changes and device == "cpu":
            row["targets"] = [at_most(1.25, row, "ratio")]
        yield row


def _peak(work: Path, count: int, changes: dict[str, Any], device: str) -> tuple[int, float]:
    """Take a step on so many pairs; return the peak of the process (or on the GPU) in bytes, and the step's seconds."""
    keep_freed_memory()
    model, step = _trained(work, _config(**changes), device)
    step(make_batch(model, 2).to(model.device))  # AdamW's state is there from now on, as in any training
    batch, started = make_batch(model, count).to(model.device), time.perf_counter()
    step(batch)
    seconds = time.perf_counter() - started  # a step ends with numbers that the GPU was waited for
    return peak_bytes() if device == "cpu" else torch.cuda.max_memory_allocated(), seconds


def _trained(work: Path, config: TrainConfig, device: str) -> tuple[AVSE, Callable[[Batch], object]]:
    """Return a model and what takes a step on it."""
    model = make_model(work).to(device)
    step, optimizer = Step(model, config), torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.0, fused=True)
    return model, lambda batch: step(batch, optimizer, 1)


def _config(**changes: Any) -> TrainConfig:
    return _CONFIG.model_copy(update=changes)


def _keep_activations(model: AVSE) -> None:
    """Undo gradient checkpointing."""
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            vars(module)["gradient_checkpointing"] = False


def _has_half(device: str) -> bool:
    return resolve_precision(device, "auto") == "bf16"


def _row(measure: str, way: str, at: str, seconds: float | None = None, first: float | None = None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(FIELDS)
    ratio = first / seconds if seconds and first else None
    return row | {"measure": measure, "way": way, "at": at, "seconds": seconds, "ratio": ratio, "targets": []}


def _check(row: dict[str, Any]) -> None:
    """Raise DisagreementError where an error is above `TOLERANCE`."""
    if not row["error"] <= TOLERANCE:
        raise DisagreementError(
            f"{row['measure']}, {row['way']}: {row['error']:.1e} from the plain way, at most {TOLERANCE:g} is allowed"
        )
