"""The whole model against the authors' code on small random weights: values within 1e-5, gradients within 1e-4."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from avse.heads import unit_blocks
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss
from avse.model import AVSE
from avse.official import import_official, our_name
from avse.sampling import kept_cells, radial_bias_sample

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    return {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "vit_eval.npz").items()}


@pytest.fixture(scope="module")
def model(tmp_path_factory, golden_checkpoint, golden_folders):
    """Imported from the authors' layout, saved, and loaded again."""
    imported = import_official(golden_checkpoint, *golden_folders)
    folder = imported.model.save_pretrained(tmp_path_factory.mktemp("golden") / "model", extra=imported.facts)
    return AVSE.from_pretrained(folder)


def close(found, expected, relative=1e-5):
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) <= relative * max(scale, 1e-12), float((found - expected).abs().max())


def test_given_indices_give_the_authors_embeddings_and_scores(model, golden):
    with torch.no_grad():
        views = model.embed_views(golden["images"], patch_indices=golden["sampled_idx"])
        close(views[:, 0], golden["gpo_pooled_view0"])
        close(views[:, 1], golden["gpo_pooled_view1"])
        close(model.unit_views(views).flatten(1), golden["img_emb"])
        mask = (torch.arange(12) < golden["lengths"][:, None]).long()
        tokens = model.text_encoder(golden["captions"], mask)
        close(model.text_head(tokens, mask), golden["txt_emb"])
        images = model.embed_pixels(golden["images"], golden["sampled_idx"]).numpy()
        texts = model.embed_tokens(golden["captions"], mask).numpy()
    close(torch.from_numpy(model.similarity(images, texts)), golden["sims"])


def test_given_centres_give_the_authors_cells_where_no_tie_is_cut(golden):
    assert kept_cells(64, 0.9, count_prefix=True) == golden["sampled_idx"].shape[2]
    found = radial_bias_sample((8, 8), 2, 58, centers=golden["centers"], method="nearest")
    clear = golden["cut_ties_out"] == 0
    assert int(clear.sum()) > 0
    assert torch.equal(found[clear], golden["sampled_sorted"][clear])


@pytest.mark.parametrize("hardest", [False, True])
def test_losses_and_gradient_norms(model, golden, hardest):
    model.zero_grad()
    mask = (torch.arange(12) < golden["lengths"][:, None]).long()
    views = model.embed_views(golden["images"], patch_indices=golden["sampled_idx"])
    from avse.scoring import aeom

    texts = model.embed_tokens(golden["captions"], mask)
    scores = aeom(unit_blocks(model.unit_views(views), 32), texts)
    hinge = HardNegativeTripletLoss(0.2, hardest)(scores, torch.eye(6, dtype=torch.bool))
    regular = CrossViewDecorrelationLoss(0.0051, "official")(views)
    name = "max" if hardest else "sum"
    close(hinge.detach(), golden[f"hinge_{name}"])
    close(regular.detach(), golden["reg"])
    close((hinge + regular).detach(), golden[f"total_{name}"])
    (hinge + regular).backward()
    expected = json.loads((GOLDEN / "vit_eval_gradnorms.json").read_text())[f"total_{name}"]
    parameters = dict(model.named_parameters())
    compared = 0
    for theirs, norm in expected.items():
        parameter = parameters.get(our_name(theirs))
        if norm is None:
            assert parameter is None or parameter.grad is None or float(parameter.grad.norm()) == 0, theirs
            continue
        assert parameter is not None, theirs
        # A key's bias has no effect on a softmax over the keys: its gradient is rounding noise.
        tolerance = 1e-5 if "key.bias" in theirs else 1e-4 * norm
        assert abs(float(parameter.grad.norm()) - norm) <= tolerance, theirs
        compared += 1
    assert compared == sum(norm is not None for norm in expected.values())


def test_token_ids_equal_the_authors(model):
    limit, cut = model.text_encoder.max_length, 0
    for item in json.loads((GOLDEN / "captions.json").read_text()):
        found, ids = model.text_encoder.tokenize([item["caption"]]), item["eval_ids"]
        expected = ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]  # BERT has no positions for the rest
        assert found.input_ids[0].tolist() == expected, item["caption"]
        assert bool(found.truncated[0]) == (len(ids) > limit)
        cut += len(ids) > limit
    assert cut == 1


def test_pixels_equal_the_authors(model):
    with np.load(GOLDEN / "preprocess.npz") as arrays:
        names = [name.removesuffix("_eval") for name in arrays.files if name.endswith("_eval")]
        assert len(names) > 2
        for name in names:
            expected = arrays[f"{name}_eval"].transpose(2, 0, 1)
            assert np.abs(model.image_encoder.load_pixels(arrays[name]) - expected).max() <= 1e-5, name
