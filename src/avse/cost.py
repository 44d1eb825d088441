"""What a recipe costs, computed from its settings alone: parameters, arithmetic, hours and memory on one GPU.

Nothing is read, built or measured: the shapes of the known towers stand in `TOWERS`, the sizes of the known data sets
in `TRAINING_SETS`. Reading of pictures or features, validation and a framework's own memory are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from avse.config import ModelConfig, Recipe

CAPTION_TOKENS = 16
"""Tokens of a caption, with the special ones, on average."""
WORDS = 10_000
"""Words of a BiGRU's vocabulary, roughly; GloVe's vectors have 50 dimensions."""
BYTES_A_PARAMETER, BYTES_FROZEN = 16, 4
"""float32 weight, gradient and Adam's two moments; a frozen one has the weight alone."""
KEPT = {"bf16": 45, "fp32": 65}
"""Bytes that a block keeps for the backward pass, for each token and channel (counted on transformers' ViT)."""
TRAINING_SETS = {"flickr30k": (29_000, 145_000), "coco": (113_287, 566_747)}
"""Images and captions of Karpathy's training splits, restval included."""


class Stage(NamedTuple):
    """Blocks of one width over tokens of one kind."""

    layers: int
    width: int
    shrink: int
    """Pixels of a token's side, by which the picture's side is divided; 0: tokens that are words."""
    window: int = 0
    """Tokens of a window's side; 0: all tokens see each other."""


class Tower(NamedTuple):
    """A transformer as its shapes say it."""

    stages: tuple[Stage, ...]
    side: int = 0
    """Side of its pictures in pixels."""
    embedding: int = 0
    """Parameters of its embedding that are looked up or added, not multiplied."""
    prefix: int = 0


def _swin(window: int, side: int) -> Tower:
    depths = (2, 2, 18, 2)
    stages = (Stage(depth, 128 << i, 4 << i, min(window, side // (4 << i))) for i, depth in enumerate(depths))
    return Tower(tuple(stages), side)


TOWERS = {
    "google/vit-base-patch16-224-in21k": Tower((Stage(12, 768, 16),), 224, 198 * 768, 1),
    "google/vit-base-patch16-384": Tower((Stage(12, 768, 16),), 384, 578 * 768, 1),
    "facebook/dinov2-base": Tower((Stage(12, 768, 14),), 518, 1371 * 768, 1),
    "microsoft/swin-base-patch4-window7-224": _swin(7, 224),
    "microsoft/swin-base-patch4-window12-384": _swin(12, 384),
    "google-bert/bert-base-uncased": Tower((Stage(12, 768, 0),), embedding=31_036 * 768),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one model of a recipe (an ensemble's members cost as much each).

    Attributes:
        parameters: All of them, encoders included.
        trained: Those that training changes.
        step_flops: Floating-point operations of a training step: two a multiply-add, three passes where trained.
        steps: Training steps of all epochs.
        memory: Bytes of weights, optimizer and what is kept for the backward pass.
    """

    parameters: int
    trained: int
    step_flops: float
    steps: int
    memory: int

    def hours(self, tflops: float) -> float:
        """Return the hours of training at so many sustained TFLOP/s."""
        return self.step_flops * self.steps / (tflops * 1e12) / 3600


class _Part(NamedTuple):
    """An encoder or head: parameters, multiply-adds an item, bytes kept an item, and whether it is trained."""

    parameters: int
    macs: float
    kept: float
    trained: bool = True


def cost(recipe: Recipe) -> Cost | None:
    """Compute what a recipe costs; None where its data set or one of its encoders is not known here."""
    model, train = recipe.model, recipe.train
    known = TRAINING_SETS.get((recipe.data.source or "").removesuffix("-regions"))
    kept = KEPT[train.precision]
    image, text = _image_side(model, kept), _text_side(model, kept)
    if known is None or image is None or text is None:
        return None
    parts = (*image, *text)
    batch = train.batch_size
    macs = sum(part.macs * (3 if part.trained else 1) for part in parts) * batch
    macs += 3 * model.num_image_blocks * model.num_text_blocks * model.block_width * batch**2
    parameters = sum(part.parameters for part in parts)
    trained = sum(part.parameters for part in parts if part.trained)
    memory = trained * BYTES_A_PARAMETER + (parameters - trained) * BYTES_FROZEN
    memory += int(sum(part.kept for part in parts if part.trained) * batch)
    items = known[0] if train.epoch_of == "images" else known[1]
    return Cost(parameters, trained, 2.0 * macs, -(-items // batch) * train.epochs, memory)


def _image_side(model: ModelConfig, kept: int) -> tuple[_Part, ...] | None:
    """Encoder and head of the pictures."""
    settings, views = model.image_encoder, model.num_views
    share = model.keep if views > 1 else 1.0
    parts: tuple[_Part, ...] = ()
    if settings.source == "regions":
        width, cells = settings.width or 0, settings.num_regions
    else:
        tower = TOWERS.get(settings.source)
        if tower is None or not tower.side:
            return None
        last, side = tower.stages[-1], settings.resolution or tower.side
        width, cells = last.width, (side // last.shrink) ** 2
        early = settings.sampling_stage == "input" and views > 1
        part = _tower(tower, side, kept, share if early else 1.0, views if early else 1)
        parts = (part._replace(trained=not settings.frozen),)
    groups = views * width if model.sampling == "groups" and views > 1 else 0
    pooled = views * int(share * cells) * model.embed_dim * 4.0
    project = width * model.embed_dim
    head = _Part(project + groups, (project + groups) * cells, pooled * 4)
    return (*parts, head)


def _text_side(model: ModelConfig, kept: int) -> tuple[_Part, ...] | None:
    """Encoder and head of the sentences."""
    settings, tokens = model.text_encoder, CAPTION_TOKENS
    if settings.source == "bigru":
        width, vectors = settings.hidden, 50
        gru = 2 * 3 * (vectors * width + width * width)
        part = _Part(WORDS * vectors + gru, gru * tokens, 2 * 6 * width * tokens * 4.0)
    else:
        tower = TOWERS.get(settings.source)
        if tower is None or tower.side:
            return None
        width = tower.stages[-1].width
        part = _tower(tower, 0, kept)._replace(trained=not settings.frozen)
    head = width * model.embed_dim + (width + model.embed_dim) * model.embed_dim // 2
    return part, _Part(head, head * tokens, 4.0 * 4 * model.embed_dim * tokens)


def _tower(tower: Tower, side: int, kept: int, share: float = 1.0, sequences: int = 1) -> _Part:
    """A transformer over one picture of so many pixels, or one sentence; a share of the tokens in each sequence."""
    parameters, macs, bytes_kept, before = tower.embedding, 0.0, 0.0, 0
    for stage in tower.stages:
        whole = (side // stage.shrink) ** 2 if stage.shrink else CAPTION_TOKENS
        tokens = (int(share * whole) + tower.prefix) * sequences
        seen = stage.window**2 or tokens / sequences
        if stage.shrink:  # patches of colour, or four tokens merged into one
            entry = 4 * before * stage.width if before else 3 * stage.shrink**2 * stage.width
            parameters += entry
            macs += entry * whole
        parameters += stage.layers * (12 * stage.width**2 + 13 * stage.width)
        macs += stage.layers * tokens * (12 * stage.width**2 + 2 * seen * stage.width)
        bytes_kept += stage.layers * tokens * stage.width * kept
        before = stage.width
    return _Part(parameters, macs, bytes_kept)
