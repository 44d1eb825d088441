"""The two sides of a model as graphs that a tracer can follow: no value of an input decides a shape or a branch.

What `AVSE` computes anew from grids and lengths is a constant here: the cells of the views, which are fixed in
evaluation, and GPO's weights, which depend on the number of tokens alone, as a table with a row for each number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from avse.encoders.bigru import BiGRU
from avse.encoders.dual_towers import DualText, OwnImageHead, OwnTextHead
from avse.encoders.image import TransformerGrid
from avse.groups import GroupSampling
from avse.model import AVSE
from avse.pooling import GPO, MeanPool
from avse.sampling import kept_cells


class ExportError(ValueError):
    """A model cannot be exported as asked; the message says what of it, why, and the way out where there is one."""


class Pool(nn.Module):
    """GPO or the mean with its weights as constants; a set without any token gives NaN."""

    table: Tensor

    def __init__(self, pool: GPO | MeanPool, most: int, masked: bool) -> None:
        """Take the pooling, the largest number of tokens K, and whether a mask says which of them count."""
        super().__init__()
        self.gpo = isinstance(pool, GPO)
        if isinstance(pool, GPO):
            weights = pool.weights(torch.arange(1 if masked else most, most + 1)).detach()
            nothing = weights.new_full((1, most), math.nan)
            self.register_buffer("table", torch.cat([nothing, weights]) if masked else weights[0])

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Pool tokens (B, K, D) under a mask (B, K) -> (B, D)."""
        if not self.gpo:
            if mask is None:
                return tokens.mean(dim=1)
            return tokens.masked_fill(~mask[..., None], 0.0).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        columns = tokens.transpose(1, 2)
        if mask is None:
            return (columns.sort(dim=-1, descending=True).values * self.table).sum(dim=-1)
        lengths = mask.sum(dim=1)
        ordered = columns.masked_fill(~mask[:, None], -math.inf).sort(dim=-1, descending=True).values
        beyond = torch.arange(tokens.shape[1]) >= lengths[:, None]
        weights = self.table[lengths][:, : tokens.shape[1]]
        return (ordered.masked_fill(beyond[:, None], 0.0) * weights[:, None]).sum(dim=-1)


class Groups(nn.Module):
    """`GroupSampling` with the largest K for every image, and a mask of the places that count."""

    counts: Tensor
    tokens: Tensor

    def __init__(self, groups: GroupSampling, cells: int) -> None:
        """Take the learnt tokens and G."""
        super().__init__()
        counts = [kept_cells(count, groups.keep_eval, groups.count_prefix) for count in range(cells + 1)]
        self.most = counts[-1]
        self.register_buffer("counts", torch.tensor(counts))
        self.register_buffer("tokens", nn.functional.normalize(groups.tokens.detach(), dim=-1))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Choose from features (B, G, W) under a mask (B, G): places (B, V, K) and which count (B, V, K)."""
        unit = nn.functional.normalize(features, dim=-1)
        cosines = (unit[:, None] * self.tokens[:, None]).sum(dim=-1).masked_fill(~mask[:, None], -math.inf)
        places = cosines.sort(dim=-1, descending=True).indices[..., : self.most]
        valid = torch.arange(self.most) < self.counts[mask.sum(dim=1)][:, None, None]
        return places, valid.expand(-1, len(self.tokens), -1)


class ImageGraph(nn.Module):
    """Pixels (B, 3, H, W), or features (B, G, W) with their mask (B, G) bool, -> unit blocks (B, P, C)."""

    views: Tensor

    def __init__(self, model: AVSE) -> None:
        """Take the image side of a model in evaluation mode; ExportError for a NaFlex tower."""
        super().__init__()
        encoder, head, views = model.image_encoder, model.image_head, model.config.num_views
        if isinstance(encoder, TransformerGrid) and encoder.model.config.model_type == "siglip2_vision_model":
            raise ExportError(
                f"the image encoder {encoder.settings.source!r} is a NaFlex tower, which fits its places to the grid "
                "in every call, and no graph says that; SigLIP 2 of a fixed resolution can be exported"
            )
        self.encoder, self.head, self.num_views, self.block_width = encoder, head, views, model.block_width
        self.reads_features = model.pixels is None
        prefix, cells = encoder.num_prefix, encoder.grid[0] * encoder.grid[1]
        self.groups = None if model.groups is None else Groups(model.groups, cells)
        if model.groups is None:
            self.register_buffer("views", model.kept_tokens(torch.zeros(1, prefix + cells, encoder.width))[0][0])
        else:
            self.register_buffer("views", torch.arange(prefix).expand(views, prefix))
        if not isinstance(head, OwnImageHead):
            most = self.views.shape[1] + (self.groups.most if self.groups else 0)
            self.pool = Pool(head.pool, most, masked=self.reads_features or self.groups is not None)

    def forward(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Embed a batch of images."""
        encoder = self.encoder
        if isinstance(encoder, TransformerGrid) and encoder.settings.sampling_stage == "input":
            tokens = encoder.run_blocks(encoder.embed_cells(inputs)[:, self.views].flatten(0, 1))
            pooled = self._pooled(self._projected(tokens), None)
        else:
            pooled = self._views(encoder(inputs), mask)
        views = nn.functional.normalize(pooled, dim=-1).reshape(-1, self.num_views * pooled.shape[1])
        return _unit_blocks(views, self.block_width)

    def _views(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Pool the views of tokens (B, prefix + G, W) -> (B·V, D)."""
        projected = self._projected(tokens)
        chosen, valid = projected[:, self.views], None if mask is None else mask[:, self.views]
        if self.groups is not None:
            prefix = self.views.shape[1]
            known = torch.ones_like(tokens[..., 0], dtype=torch.bool) if mask is None else mask
            places, counted = self.groups(tokens[:, prefix:], known[:, prefix:])
            index = places[..., None].expand(-1, -1, -1, projected.shape[2])
            cells = projected[:, None, prefix:].expand(-1, self.num_views, -1, -1).gather(2, index)
            chosen, valid = torch.cat([chosen, cells], dim=2), torch.cat([known[:, self.views], counted], dim=2)
        return self._pooled(chosen.flatten(0, 1), None if valid is None else valid.flatten(0, 1))

    def _projected(self, tokens: Tensor) -> Tensor:
        return tokens if isinstance(self.head, OwnImageHead) else self.head.project(tokens)

    def _pooled(self, tokens: Tensor, valid: Tensor | None) -> Tensor:
        pooled: Tensor = self.head(tokens) if isinstance(self.head, OwnImageHead) else self.pool(tokens, valid)
        return pooled


class TextGraph(nn.Module):
    """Token ids (B, L) and their mask (B, L), int64 as a tokenizer gives them, -> unit blocks (B, Q, C)."""

    def __init__(self, model: AVSE) -> None:
        """Take the text side of a model in evaluation mode."""
        super().__init__()
        encoder, head = model.text_encoder, model.text_head
        self.head, self.block_width = head, model.block_width
        self.encoder = BidirectionalGRU(encoder) if isinstance(encoder, BiGRU) else encoder
        if not isinstance(head, OwnTextHead):
            self.pool = Pool(head.pool, encoder.max_length, masked=True)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed a batch of texts."""
        mask = self._seen(input_ids, attention_mask)
        tokens = self.encoder(input_ids, mask)
        if isinstance(self.head, OwnTextHead):
            pooled = self.head.project(self._one(tokens, mask))
        else:
            changed = self.head.mlp(tokens.flatten(0, 1)).reshape(*tokens.shape[:2], -1)
            pooled = self.head.norm(self.pool(self.head.project(tokens) + changed, mask.bool()))
        return _unit_blocks(pooled, self.block_width)

    def _seen(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return what a pair's encoder sees as its mask: SigLIP the padding too, CLIP up to the first end of text."""
        if not isinstance(self.encoder, DualText):
            return mask
        if self.encoder.sees_padding:
            return torch.ones_like(mask)
        if self.encoder.last:
            return mask
        end = self.encoder.model.config.eos_token_id
        ends = ids.argmax(dim=1) if end == 2 else (ids == end).long().argmax(dim=1)
        return (torch.arange(ids.shape[1]) <= ends[:, None]).long()

    def _one(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return the token that a pair pools (B, W): the last of all, or the last one under the mask."""
        if self.head.last:
            return tokens[:, -1]
        places = (torch.arange(mask.shape[1]) * mask).amax(dim=1)
        return tokens.gather(1, places[:, None, None].expand(-1, 1, tokens.shape[2])).squeeze(1)


class BidirectionalGRU(nn.Module):
    """The BiGRU as one node of ONNX, which knows lengths; torch has none that a tracer can follow."""

    def __init__(self, encoder: BiGRU) -> None:
        """Take the weights, their gates reordered from reset, update, new to ONNX's update, reset, new."""
        super().__init__()
        define_gru()
        self.vectors, self.hidden = encoder.vectors, encoder.gru.hidden_size
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        values = [[getattr(encoder.gru, name + way).detach() for way in ("", "_reverse")] for name in names]
        turned = [torch.stack([self._turned(value) for value in pair]) for pair in values]
        self.register_buffer("inputs", turned[0])
        self.register_buffer("states", turned[1])
        self.register_buffer("biases", torch.cat(turned[2:], dim=1))

    def _turned(self, weights: Tensor) -> Tensor:
        reset, update, new = weights.chunk(3)
        return torch.cat([update, reset, new])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) ids into tokens (B, L, hidden)."""
        lengths = attention_mask.sum(dim=1).int()
        tokens: Tensor = torch.ops.avse.bigru(
            self.vectors(input_ids), self.inputs, self.states, self.biases, lengths, self.hidden
        )
        return tokens


def _unit_blocks(pooled: Tensor, width: int) -> Tensor:
    """Cut vectors (B, P·C) into unit blocks (B, P, C); `heads.unit_blocks` asks for the batch size as a number."""
    return nn.functional.normalize(pooled.reshape(-1, pooled.shape[1] // width, width), dim=-1)


def define_gru() -> None:
    """Make torch know `avse::bigru`, which is traced and never run."""
    if hasattr(torch.ops.avse, "bigru"):
        return

    @torch.library.custom_op("avse::bigru", mutates_args=())
    def bigru(x: Tensor, inputs: Tensor, states: Tensor, biases: Tensor, lengths: Tensor, hidden: int) -> Tensor:
        raise ExportError("avse::bigru stands for ONNX's GRU in a graph; the text encoder itself computes it")

    @bigru.register_fake
    def _(x: Tensor, inputs: Tensor, states: Tensor, biases: Tensor, lengths: Tensor, hidden: int) -> Tensor:
        return x.new_empty(x.shape[0], x.shape[1], hidden)
