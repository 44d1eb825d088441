"""One step: cached embeddings equal the plain step, to the last digits of float64; precisions; what is left out."""

import copy

import pytest
import torch

from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, TrainConfig
from avse.encoders import EncoderError
from avse.heads import unit_blocks
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss, InfoNCE, true_matches
from avse.model import AVSE
from avse.scoring import aeom
from avse.trainer.chunks import Tokens, even_parts
from avse.trainer.schedule import hold_encoders, parameter_groups
from avse.trainer.step import Batch, Step, texts_in_a_part

TEXTS = ["a dog", "two red birds in the sky", "a", "the small cat sits on grass near a river", "a  Dog", "a house"]
SIZE = len(TEXTS)


@pytest.fixture
def make(tiny_vit_folder, tiny_bert_folder):
    def build(stage="input", dropout=0.0, **text):
        torch.manual_seed(0)
        model = AVSE(
            ModelConfig(
                image_encoder=ImageEncoderConfig(source=str(tiny_vit_folder), frozen=False, sampling_stage=stage),
                text_encoder=TextEncoderConfig(source=str(tiny_bert_folder), frozen=False, **text),
                embed_dim=16,
                block_width=8,
                dropout=dropout,
            )
        )
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = dropout
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = dropout
        with torch.no_grad():  # tokens that differ, so that no two scores are nearly equal
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(2)
        return model.double().train()

    return build


def batch_of(model, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(SIZE, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    tokens = model.text_encoder.tokenize(TEXTS)
    views = model.sampling((4, 4), SIZE, generator)
    return Batch(pixels, tokens.input_ids, tokens.attention_mask, views, None, [0, 1, 2, 3, 4, 1], TEXTS)


def gradients(model, config, epoch=5, batch=None):
    step = Step(model, config)
    step.infonce.double()
    step.hinge.hardest = epoch >= 1
    model.zero_grad()
    parts = step.backward(batch or batch_of(model), epoch)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if step.infonce.log_scale.grad is not None:
        found["log_scale"] = step.infonce.log_scale.grad.clone()
    return parts, found


def furthest(a, b):
    assert a.keys() == b.keys() and a
    scale = max(float(value.abs().max()) for value in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in b) / scale


def naive(model, config, batch, hardest):
    """The loss as it stands in the paper, by the model's own forward pass over the whole batch."""
    views = model.embed_views(batch.images, None, batch.views)
    images = unit_blocks(model.unit_views(views), model.block_width)
    scores = aeom(images, model.embed_tokens(batch.texts, batch.mask))
    if config.score_scale == "mean":
        scores = scores / model.num_text_blocks
    matches = true_matches(batch.image_ids, batch.captions)
    hinge = HardNegativeTripletLoss(config.margin)
    hinge.hardest = hardest
    loss = hinge if config.objective == "hinge" else InfoNCE(config.temperature).double()
    regular = CrossViewDecorrelationLoss(config.off_diagonal_weight, config.decorrelation_form)
    return loss(scores, matches) + config.decorrelation_weight * regular(views)


OBJECTIVES = [
    {"objective": "hinge", "score_scale": "sum", "decorrelation_weight": 1.0},
    {"objective": "infonce", "learn_temperature": True, "decorrelation_weight": 0.1, "decorrelation_form": "official"},
]


@pytest.mark.parametrize("stage", ["input", "output"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("epoch", [0, 5])
def test_cached_embeddings_give_the_gradient_of_the_whole_batch(make, stage, objective, epoch):
    model = make(stage)
    batch, plain = batch_of(model), TrainConfig(batch_size=SIZE, **objective)
    statistics = {name: value.clone() for name, value in model.named_buffers()}
    loss = naive(model, plain, batch, hardest=epoch >= 1)
    loss.backward()
    loss = loss.detach()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    moved = {name: value.clone() for name, value in model.named_buffers()}
    for chunk in (None, 1, 2, 4, 100):
        model.load_state_dict(statistics, strict=False)
        parts, found = gradients(model, plain.model_copy(update={"chunk_size": chunk}), epoch)
        found.pop("log_scale", None)
        assert abs(float(parts["loss"] - loss)) <= 1e-9 * abs(float(loss)), chunk
        assert furthest(found, expected) < 1e-9, chunk
        for name, value in model.named_buffers():  # the masked batch norm has seen the whole batch, once
            assert torch.allclose(value.double(), moved[name].double(), rtol=1e-12), name


def test_only_the_encoders_are_chunked(make):
    model, seen = make(), []
    model.text_encoder.register_forward_hook(lambda m, inputs, out: seen.append(("texts", len(inputs[0]))))
    model.image_encoder.model.layers[0].register_forward_hook(lambda m, i, o: seen.append(("images", len(o))))
    model.text_head.register_forward_hook(lambda m, inputs, out: seen.append(("head", len(inputs[0]))))
    gradients(model, TrainConfig(chunk_size=2))
    assert {size for what, size in seen if what == "texts"} == {2}
    assert {size for what, size in seen if what == "images"} == {4}  # two views each
    assert [size for what, size in seen if what == "head"] == [SIZE]


def test_a_chunk_draws_the_same_dropout_twice(make):
    """Against the same parts with a graph, whose dropout is drawn in the same order."""
    model = make(dropout=0.3)
    config, batch = TrainConfig(chunk_size=2, objective="hinge"), batch_of(model)
    torch.manual_seed(3)
    _, cached = gradients(model, config, batch=batch)
    after = torch.get_rng_state()

    class Whole(Tokens):
        def __init__(self, encode, parts, cached):
            super().__init__(encode, parts, cached=False)

    import avse.trainer.step as module

    model.zero_grad()
    patch = pytest.MonkeyPatch()
    patch.setattr(module, "Tokens", Whole)
    torch.manual_seed(3)
    _, whole = gradients(model, config, batch=batch)
    patch.undo()
    assert torch.equal(after, torch.get_rng_state())
    assert furthest(cached, whole) < 1e-9
    torch.manual_seed(4)
    assert furthest(gradients(model, config, batch=batch)[1], whole) > 1e-3  # dropout does matter here


def test_checkpointed_gradients_are_the_same(make):
    model = make(dropout=0.3)
    torch.manual_seed(1)
    _, plain = gradients(model, TrainConfig())
    torch.manual_seed(1)
    _, saved = gradients(model, TrainConfig(gradient_checkpointing=True))
    assert furthest(saved, plain) < 1e-12
    assert model.image_encoder.model.layers[0].gradient_checkpointing
    bigru = copy.deepcopy(model.text_encoder)
    del bigru.model
    with pytest.raises(EncoderError, match="cannot checkpoint gradients"):
        bigru.recompute_blocks()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("chunk", [None, 2])
def test_half_precision_comes_near_fp32(make, precision, chunk):
    model = make().float()
    batch = batch_of(model, torch.float32)
    config = TrainConfig(objective="infonce", precision="fp32")
    step = Step(model, config)
    step.backward(batch, 0)
    exact = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    half = Step(model, config.model_copy(update={"precision": precision, "chunk_size": chunk}))
    half.scaler.scale(torch.ones(()))  # makes the scale
    half.scaler.update(256.0)
    half.backward(batch, 0)
    scale = half.scaler.get_scale() if precision == "fp16" else 1.0
    found = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == exact.keys()
    both = [torch.cat([g[name].flatten() for name in exact]) for g in (found, exact)]
    assert torch.nn.functional.cosine_similarity(*both, dim=0) > (0.97 if precision == "bf16" else 0.995)


def test_clipping_comes_after_unscaling_and_an_overflow_changes_nothing(make):
    model = make().float()
    config = TrainConfig(precision="fp16", clip_norm=1e-3, lr=1.0, encoder_lr=1.0, weight_decay=0)
    step = Step(model, config)
    optimizer = torch.optim.SGD(parameter_groups(model, step.infonce, config), lr=1.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = batch_of(model, torch.float32)
    step.scaler.scale(torch.ones(()))  # makes the scale
    step.scaler.update(2.0**40)
    assert step(batch, optimizer, 0) == {"overflow": 1.0}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert step.scaler.get_scale() == 2.0**39
    step.scaler.update(64.0)
    parts = step(batch, optimizer, 0)
    assert parts["gradient"] > 1e-3
    moved = sum(float((p - before[name]).square().sum()) for name, p in model.named_parameters()) ** 0.5
    assert moved == pytest.approx(1e-3, rel=0.05)  # of the clipped gradient, not of the scaled one


def test_a_batch_without_negatives_is_no_step(make):
    model = make().float()
    config = TrainConfig(weight_decay=0.5)
    step = Step(model, config)
    optimizer = torch.optim.AdamW(parameter_groups(model, step.infonce, config))
    batch = batch_of(model, torch.float32)
    same = Batch(batch.images, batch.texts, batch.mask, batch.views, None, [7] * SIZE, batch.captions)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for objective in ("infonce", "hinge"):
        step.config = config.model_copy(update={"objective": objective})
        assert step(same, optimizer, 3) == {"left_out": 1.0}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_not_finite_changes_nothing(make):
    model = make().float()
    step = Step(model, TrainConfig())
    optimizer = torch.optim.AdamW(parameter_groups(model, step.infonce, step.config))
    batch = batch_of(model, torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch.images[1, 0, 0, 0] = float("nan")
    assert step(batch, optimizer, 0) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_held_encoders_take_no_gradient_and_draw_no_dropout(make):
    model = make(dropout=0.5)
    hold_encoders(model, True)
    model.text_head.dropout.p = model.image_head.dropout.p = 0.0
    found = [gradients(model, TrainConfig(chunk_size=2))[1] for _ in range(2)]
    assert not any("encoder" in name for name in found[0]) and any("head" in name for name in found[0])
    assert furthest(found[0], found[1]) == 0
    hold_encoders(model, False)
    names = {name for name in gradients(model, TrainConfig())[1] if "encoder" in name}
    assert any(name.startswith("image_encoder") for name in names) and len(names) > 10
    unused = {name for name, p in model.named_parameters() if "mask_token" in name and p.requires_grad}
    assert not unused


def test_tokens_of_unequal_length_are_padded_with_zeros():
    values = torch.arange(12.0).reshape(3, 4)
    lengths = torch.tensor([2, 4, 1])

    def encode(rows):
        return values[rows, : int(lengths[rows].max())]

    tokens = Tokens(encode, [torch.tensor([2]), torch.tensor([0]), torch.tensor([1])], cached=False)
    assert tokens.values.tolist() == [[0, 1, 0, 0], [4, 5, 6, 7], [8, 0, 0, 0]]
    assert [part.tolist() for part in even_parts(5, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(
    ("device", "count", "part"),
    [("cpu", 8, 16), ("cpu", 128, 32), ("cuda", 128, 128), ("cuda", 512, 128), ("cuda", 513, 129), ("mps", 64, 128)],
)
def test_texts_go_in_four_parts_of_a_size_that_pays(device, count, part):
    assert texts_in_a_part(count, device) == part
