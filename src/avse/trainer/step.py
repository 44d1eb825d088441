"""One training step: tokens, blocks, the whole batch of every process, losses, gradients, the optimiser.

Knows the model's parts, the losses and other processes; no data set, no epochs, no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from avse import parallel
from avse.config import TrainConfig
from avse.encoders.base import Encoder
from avse.heads import unit_blocks
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss, InfoNCE, true_matches, violation_rate
from avse.model import AVSE
from avse.precision import exact_float32
from avse.scoring import aeom
from avse.trainer.chunks import Tokens, even_parts, parts_by_length
from avse.trainer.watch import spread

TEXT_PARTS, LEAST_TEXTS, LEAST_ON_GPU = 4, 16, 128
"""A batch's texts are encoded in so many parts of like length, of so many texts at least; more where starting a kernel
costs more than the padding that it saves."""
SMALLEST_SCALE = 1.0
"""fp16: below this scale of the loss it is no longer the scale that makes a gradient overflow."""


@dataclass(frozen=True)
class Batch:
    """The pairs of one step that this process embeds.

    Attributes:
        images: pixels (B, 3, H, W) or features (B, G, W).
        texts: token ids (B, L) int64 or token features (B, L, W).
        mask: (B, L) int64, 1 on tokens.
        views: (B, V, K) int64 cells, or None where groups choose them.
        seen: (B, prefix + G) bool, the features that groups choose from; None: all.
        image_ids: B ids; pairs of one id are no negatives of each other.
        captions: B texts; nor are pairs of one text.
    """

    images: Tensor
    texts: Tensor
    mask: Tensor
    views: Tensor | None
    seen: Tensor | None
    image_ids: list[Hashable]
    captions: list[str]

    def to(self, device: torch.device) -> Batch:
        """Return it on a device; pinned memory is not waited for."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """Return it in memory that a GPU can fetch by itself."""
        return self._each(lambda tensor: tensor.contiguous().pin_memory())  # one view's cells are one row, repeated

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        views, seen = (None if drawn is None else change(drawn) for drawn in (self.views, self.seen))
        images, texts, mask = change(self.images), change(self.texts), change(self.mask)
        return replace(self, images=images, texts=texts, mask=mask, views=views, seen=seen)


class Step:
    """What a step does with a batch; the gradients of several processes equal one process's with the whole batch.

    Args:
        model: in training mode; encoders that take no gradient are run as they are.
        config: objective, precision, chunks.
    """

    def __init__(self, model: AVSE, config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.hinge = HardNegativeTripletLoss(config.margin)
        self.infonce = InfoNCE(config.temperature, config.learn_temperature).to(model.device)
        self.decorrelation = CrossViewDecorrelationLoss(config.off_diagonal_weight, config.decorrelation_form)
        self.scaler = torch.amp.GradScaler(model.device.type, enabled=config.precision == "fp16")
        for encoder in trained_encoders(model):
            if config.gradient_checkpointing:
                encoder.recompute_blocks()
            if config.compile:
                encoder.compile_blocks()

    def __call__(self, batch: Batch, optimizer: torch.optim.Optimizer, epoch: int) -> dict[str, float] | None:
        """Take one step.

        Returns:
            Parts of the loss, `gradient` (norm before clipping), `violations` (share of queries whose hardest negative
            lies within the margin, or with InfoNCE above the match), spreads, `left_out` (1 for a batch without any
            negative, which is no step); None when loss or gradient were not finite: weights and statistics are then as
            before.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        optimizer.zero_grad()
        buffers = {name: value.clone() for name, value in self.model.named_buffers()}
        parts = self.backward(batch, epoch)
        if parts is None or parts.pop("left_out"):
            self._put_back(buffers)
            return None if parts is None else {"left_out": 1.0}
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or math.inf)
        good = not parallel.any_rank(not bool(torch.isfinite(norm)))
        if good:
            self.scaler.step(optimizer)
        else:
            optimizer.zero_grad()
            self._put_back(buffers)
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > SMALLEST_SCALE
        self.scaler.update()
        if not good:
            return {"overflow": 1.0} if overflow else None
        return {name: value.item() for name, value in {**parts, "gradient": norm}.items()}

    @exact_float32()
    def backward(self, batch: Batch, epoch: int) -> dict[str, Any] | None:
        """Leave the gradient of the whole batch's loss (times the scale of fp16) in the parameters.

        Returns:
            Parts of the loss, tensors; None when the loss is not finite, and then nothing was added.
        """
        if self.config.chunk_size:
            self._make_room()
        if not self.model.config.masked_batch_norm:
            batch = _padded_alike(batch)
        images, texts = self._image_tokens(batch), self._text_tokens(batch)
        parts = self._through_heads(batch, images.values, texts.values, epoch)
        if parts is not None and not parts["left_out"]:
            for tokens in (images, texts):  # the heads' graph, which held the tokens, is gone
                tokens.backward()
            parallel.average_gradients([*self.model.parameters(), *self.infonce.parameters()])
        return parts

    def _through_heads(self, batch: Batch, images: Tensor, texts: Tensor, epoch: int) -> dict[str, Any] | None:
        """Take the loss on the tokens of the whole batch, and go back to them."""
        model, config = self.model, self.config
        with self.autocast():
            views = model.pool_views(images, batch.seen, batch.views)
            image_blocks = unit_blocks(model.unit_views(views), model.block_width)
            text_blocks = model.embed_token_features(texts, batch.mask[:, : texts.shape[1]])
        pairs = parallel.gather_objects((batch.image_ids, batch.captions))
        ids, captions = [i for part in pairs for i in part[0]], [text for part in pairs for text in part[1]]
        matches = true_matches(ids, captions).to(model.device)
        image_blocks, text_blocks = parallel.gather(image_blocks), parallel.gather(text_blocks)
        scores = aeom(image_blocks, text_blocks)
        if config.score_scale == "mean":
            scores = scores / model.num_text_blocks
        matching = self.matching(scores, matches, epoch)
        regular = scores.new_zeros(())
        if config.decorrelation_weight:
            regular = self.decorrelation(parallel.gather(views.to(scores.dtype)))
        loss = matching + config.decorrelation_weight * regular
        if parallel.any_rank(not bool(torch.isfinite(loss))):
            return None
        left_out = bool(matches.all())
        if not left_out:
            torch.autograd.backward(self.scaler.scale(loss))
        with torch.no_grad():
            watched = {
                "violations": violation_rate(scores, matches, 0.0 if self.is_infonce(epoch) else config.margin),
                "spread_images": spread(image_blocks),
                "spread_texts": spread(text_blocks),
            }
        parts = {"loss": loss.detach(), "matching": matching.detach(), "decorrelation": regular.detach()}
        return {**parts, **watched, "pairs": scores.new_tensor(len(ids)), "left_out": left_out}

    def _make_room(self) -> None:
        """Let the encoders' gradients have their places before the chunks come.

        Among a chunk's activations, which are freed around them, they would cut the memory into pieces that the next
        chunk does not fit into.
        """
        for encoder in trained_encoders(self.model):
            for parameter in encoder.trainable():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)

    def matching(self, scores: Tensor, matches: Tensor, epoch: int) -> Tensor:
        """L_m of this epoch: InfoNCE, or hinge with all negatives or (`hinge.hardest`) each query's hardest."""
        return (self.infonce if self.is_infonce(epoch) else self.hinge)(scores, matches)

    def is_infonce(self, epoch: int) -> bool:
        """Tell whether an epoch's L_m is InfoNCE."""
        return self.config.objective == "infonce" or epoch < self.config.infonce_warmup_epochs

    def autocast(self) -> Any:
        """Return a fresh context of the chosen precision: one that ends forgets its copies of the weights."""
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = kinds.get(self.config.precision)
        return torch.autocast(self.model.device.type, kind, enabled=kind is not None)

    def _image_tokens(self, batch: Batch) -> Tokens:
        count, encoded = len(batch.images), batch.images.ndim == 3
        trained = not encoded and takes_gradient(self.model.image_encoder)

        def encode(rows: Tensor) -> Tensor:
            if encoded:
                return self.model.image_tokens(batch.images)
            views = None if batch.views is None else batch.views[rows]
            with self.autocast(), torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                return self.model.image_tokens(batch.images[rows], views)

        size = None if encoded else self.config.chunk_size
        return Tokens(encode, even_parts(count, size or count), cached=trained and size is not None)

    def _text_tokens(self, batch: Batch) -> Tokens:
        count, encoded = len(batch.texts), batch.texts.ndim == 3
        trained = not encoded and takes_gradient(self.model.text_encoder)
        lengths, size = batch.mask.sum(dim=1).cpu(), None if encoded else self.config.chunk_size
        cut = not encoded and self._padding_is_nothing(batch.mask)

        def encode(rows: Tensor) -> Tensor:
            if encoded:
                return batch.texts
            longest = int(lengths[rows].max()) if cut else batch.texts.shape[1]
            with self.autocast(), torch.set_grad_enabled(trained and torch.is_grad_enabled()):
                return self.model.text_encoder(batch.texts[rows, :longest], batch.mask[rows, :longest])

        if cut:
            parts = parts_by_length(lengths, size or texts_in_a_part(count, self.model.device.type))
        else:
            parts = even_parts(count, size or count)
        return Tokens(encode, parts, cached=trained and size is not None)

    def _padding_is_nothing(self, mask: Tensor) -> bool:
        """Tell whether texts may be padded less: nothing reads their padding, and it stands on the right."""
        config = self.model.config
        return config.heads == "avse" and config.masked_batch_norm and bool((mask[:, :-1] >= mask[:, 1:]).all())

    def _put_back(self, buffers: dict[str, Tensor]) -> None:
        """Undo what a step that is left out did to running statistics."""
        for name, value in self.model.named_buffers():
            value.copy_(buffers[name])


def _padded_alike(batch: Batch) -> Batch:
    """Pad the texts of every process to one length: a batch norm that counts the padding must count as much of it."""
    missing = max(parallel.gather_objects(batch.mask.shape[1])) - batch.mask.shape[1]
    if not missing:
        return batch
    texts = nn.functional.pad(batch.texts, (0, 0) * (batch.texts.ndim - 2) + (0, missing))
    return replace(batch, texts=texts, mask=nn.functional.pad(batch.mask, (0, missing)))


def texts_in_a_part(count: int, device: str) -> int:
    """Return how many of a batch's texts are encoded together, on a device of this type."""
    return max(LEAST_TEXTS if device == "cpu" else LEAST_ON_GPU, math.ceil(count / TEXT_PARTS))


def trained_encoders(model: AVSE) -> list[Encoder]:
    """Return the encoders that the configuration does not freeze."""
    return [encoder for encoder in (model.image_encoder, model.text_encoder) if not encoder.frozen]


def takes_gradient(module: nn.Module) -> bool:
    """Tell whether any of a module's parameters is being trained."""
    return any(parameter.requires_grad for parameter in module.parameters())
