"""The authors' layout: names by rule, every weight placed, nothing run, and each misfit named."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from avse.checkpoint import CheckpointError
from avse.config import ConfigError, ImageEncoderConfig, TextEncoderConfig
from avse.encoders import EncoderError, build_image_encoder, build_text_encoder
from avse.official import import_official, our_name, their_name, vit_name

GOLDEN = Path(__file__).parent / "golden"
V, T, D = 48, 32, 40  # widths of the small ViT and BERT below, and of the embedding


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def vit_shapes() -> dict[str, tuple[int, ...]]:
    """A ViT of transformers 4 by hand: 2 blocks, patches of 16, a 3x3 grid."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, V),
        "embeddings.position_embeddings": (1, 10, V),
    }
    shapes |= {"embeddings.patch_embeddings.projection.weight": (V, 3, 16, 16)}
    shapes |= {"embeddings.patch_embeddings.projection.bias": (V,)}
    for i in range(2):
        block = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            shapes |= linear(f"{block}.attention.attention.{part}", V, V)
        shapes |= linear(f"{block}.attention.output.dense", V, V)
        shapes |= linear(f"{block}.intermediate.dense", 3 * V, V) | linear(f"{block}.output.dense", V, 3 * V)
        shapes |= norm(f"{block}.layernorm_before", V) | norm(f"{block}.layernorm_after", V)
    return shapes | norm("layernorm", V) | linear("pooler.dense", V, V)


def bert_shapes() -> dict[str, tuple[int, ...]]:
    """A BERT by hand: 1 block."""
    shapes: dict[str, tuple[int, ...]] = {"embeddings.word_embeddings.weight": (130, T)}
    shapes |= {"embeddings.position_embeddings.weight": (20, T), "embeddings.token_type_embeddings.weight": (2, T)}
    shapes |= norm("embeddings.LayerNorm", T)
    block = "encoder.layer.0"
    for part in ("query", "key", "value"):
        shapes |= linear(f"{block}.attention.self.{part}", T, T)
    for part, out, into in (("attention.output", T, T), ("intermediate", 2 * T, T), ("output", T, 2 * T)):
        shapes |= linear(f"{block}.{part}.dense", out, into)
    return shapes | norm(f"{block}.attention.output.LayerNorm", T) | norm(f"{block}.output.LayerNorm", T)


def head_shapes() -> dict[str, tuple[int, ...]]:
    shapes = linear("img_enc.image_encoder.fc", D, V) | linear("txt_enc.fc", D, T) | norm("txt_enc.ln", D)
    shapes |= linear("txt_enc.mlp.layers.0", D // 2, T) | linear("txt_enc.mlp.layers.1", D, D // 2)
    for i, width in enumerate((D // 2, D)):
        shapes |= norm(f"txt_enc.mlp.bns.{i}", width)
        shapes |= {f"txt_enc.mlp.bns.{i}.running_{what}": (width,) for what in ("mean", "var")}
    for pool in ("img_enc.image_encoder.gpool", "txt_enc.gpool"):
        for end in ("l0", "l0_reverse"):
            shapes |= {f"{pool}.gru.weight_{side}_{end}": (96, 32) for side in ("ih", "hh")}
            shapes |= {f"{pool}.gru.bias_{side}_{end}": (96,) for side in ("ih", "hh")}
        shapes |= {f"{pool}.linear.weight": (1, 32)}
    return shapes


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = {f"img_enc.visual_encoder.{name}": shape for name, shape in vit_shapes().items()}
    shapes |= {f"txt_enc.bert.{name}": shape for name, shape in bert_shapes().items()} | head_shapes()
    made = {name: torch.rand(shape, generator=generator) * 0.2 + 0.01 for name, shape in shapes.items()}
    made |= {f"txt_enc.mlp.bns.{i}.num_batches_tracked": torch.tensor(7) for i in (0, 1)}
    return made | {"sim_enc.bin_score": torch.tensor(1.0)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_bert_folder) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("small")
    vit = {"model_type": "vit", "hidden_size": V, "num_hidden_layers": 2, "num_attention_heads": 3}
    vit |= {"intermediate_size": 3 * V, "image_size": 48, "patch_size": 16}
    bert = {"model_type": "bert", "vocab_size": 130, "hidden_size": T, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert |= {"intermediate_size": 2 * T, "max_position_embeddings": 20}
    for name, config in (("vit", vit), ("bert", bert)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_bert_folder / name, folder / "bert")
    return folder / "vit", folder / "bert"


@pytest.fixture
def imported(tmp_path, folders):
    """Write a file and import it."""

    def run(model, *, folders=folders, opt=None, block_width=8, resolution=None, **content):
        options = argparse.Namespace(**{"embed_size": D, **(opt or {})})
        torch.save({"model": model, "opt": options, **content}, tmp_path / "model_best.pth")
        return import_official(tmp_path / "model_best.pth", *folders, block_width=block_width, resolution=resolution)

    return run


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def changed(folder: Path, target: Path, **values) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **values}))
    return target


def test_the_rules_are_the_whole_map():
    known = json.loads((GOLDEN / "vit_keymap_tf4_to_tf5.json").read_text())
    assert len(known) > 40
    for old, new in known.items():
        assert vit_name(old) == new and vit_name(new) == new
        assert their_name(our_name(f"img_enc.visual_encoder.{old}")) == f"img_enc.visual_encoder.{old}"
    assert our_name("sim_enc.bin_score") is None


def test_every_weight_lands_where_transformers_puts_it(imported, weights, folders, tmp_path):
    """Transformers renames weights of its former versions when it loads them: an independent reading."""
    found = imported(weights, epoch=4, best_rsum=250.5)
    assert sorted(found.unused) == sorted(
        name for name in weights if "pooler" in name or "bns.1" in name or "bin_score" in name
    )
    for folder, prefix in zip(folders, ("img_enc.visual_encoder.", "txt_enc.bert.")):
        chosen = {name[len(prefix) :]: value.clone() for name, value in weights.items() if name.startswith(prefix)}
        shutil.copytree(folder, tmp_path / folder.name)
        save_file(chosen, tmp_path / folder.name / "model.safetensors", metadata={"format": "pt"})
    vit = build_image_encoder(ImageEncoderConfig(source=str(tmp_path / "vit")))
    bert = build_text_encoder(TextEncoderConfig(source=str(tmp_path / "bert"), max_length=20))
    model = found.model
    assert same(model.image_encoder.state_dict(), vit.state_dict())
    assert same(model.text_encoder.state_dict(), bert.state_dict())
    for theirs, ours in {
        "img_enc.image_encoder.fc.weight": model.image_head.project.weight,
        "img_enc.image_encoder.gpool.gru.weight_hh_l0_reverse": model.image_head.pool.gru.weight_hh_l0_reverse,
        "txt_enc.fc.bias": model.text_head.project.bias,
        "txt_enc.mlp.layers.0.weight": model.text_head.mlp[0].weight,
        "txt_enc.mlp.bns.0.running_var": model.text_head.mlp[1].running_var,
        "txt_enc.mlp.layers.1.weight": model.text_head.mlp[3].weight,
        "txt_enc.ln.weight": model.text_head.norm.weight,
        "txt_enc.gpool.linear.weight": model.text_head.pool.linear.weight,
    }.items():
        assert torch.equal(ours, weights[theirs]), theirs
    assert (model.num_image_blocks, model.num_text_blocks, model.block_width) == (10, 5, 8)
    assert model.embed_pixels(torch.zeros(2, 3, 48, 48)).shape == (2, 10, 8)
    assert model.encode_texts(["a dog on a beach"]).shape == (1, 5, 8) and model.text_encoder.max_length == 20


def test_the_profile_is_official_and_the_facts_are_kept(imported, weights, tmp_path):
    found = imported(weights, epoch=4, best_rsum=250.5, Eiters=9)
    config = found.model.config
    assert (config.sampling, config.keep_eval, config.count_prefix) == ("nearest", 0.9, True)
    assert config.image_encoder.sampling_stage == "input" and not config.image_encoder.final_norm
    assert found.model.image_encoder.pixels.method == "official" and not config.masked_batch_norm
    assert found.facts["epoch"] == 4 and found.facts["reported_rsum"] == 250.5
    assert found.facts["reported_on"].startswith("test") and found.facts["imported_from"] == "model_best.pth"
    import hashlib

    assert found.facts["imported_sha256"] == hashlib.sha256((tmp_path / "model_best.pth").read_bytes()).hexdigest()
    assert imported(weights, best_rsum=float("nan")).facts.keys() == {"imported_from", "imported_sha256"}


def test_other_layouts_of_the_same_weights(imported, weights):
    expected = imported(weights).model.state_dict()
    sides = [{n[8:]: v for n, v in weights.items() if n.startswith(side)} for side in ("img_enc.", "txt_enc.")]
    wrapped = {name.replace("_enc.", "_enc.module.", 1): value for name, value in weights.items()}
    new = "img_enc.visual_encoder."
    newer = {new + vit_name(n[len(new) :]) if n.startswith(new) else n: v for n, v in weights.items()}
    for layout in (
        sides,
        [{f"module.{name}": value for name, value in side.items()} for side in sides],
        {f"module.{name}": value for name, value in weights.items()},
        wrapped,
        newer,
        {name: value.half().float() if value.is_floating_point() else value for name, value in weights.items()},
    ):
        found = imported(layout).model.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.allclose(found[name], value, atol=1e-3) for name, value in expected.items())
    half = imported({name: value.half() if value.is_floating_point() else value for name, value in weights.items()})
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32, torch.int64}


class Poison:
    """A pickle that would make a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize("place", ["model", "weight", "opt", "inside opt", "plain pickle"])
def test_a_poisoned_file_is_refused_and_not_run(tmp_path, folders, weights, place):
    path, target = tmp_path / "bad.pth", tmp_path / "touched"
    poison = Poison(target)
    content = {
        "model": {"model": poison, "opt": argparse.Namespace(embed_size=D)},
        "weight": {"model": {**weights, "txt_enc.fc.weight": poison}},
        "opt": {"model": weights, "opt": poison},
        "inside opt": {"model": weights, "opt": argparse.Namespace(embed_size=D, block_dim=poison)},
    }.get(place)
    if content is None:
        path.write_bytes(pickle.dumps(poison, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"refused and nothing of it was run: it names \w+\.system"):
        import_official(path, *folders)
    assert not target.exists()
    pickle.loads(pickle.dumps(poison))
    assert target.exists()  # it is a real one


@pytest.mark.parametrize("kind", ["truncated", "another zip", "text", "empty", "another protocol"])
def test_a_file_that_is_no_checkpoint(golden_checkpoint, folders, tmp_path, kind):
    path = tmp_path / "file.pth"
    if kind == "truncated":
        path.write_bytes(golden_checkpoint.read_bytes()[:-5000])
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "another protocol":
        path.write_bytes(pickle.dumps({"model": print}, protocol=4))
    else:
        path.write_text({"text": "hello there", "empty": ""}[kind])
    with pytest.raises(CheckpointError, match=f"{path} cannot be read as a checkpoint of torch: "):
        import_official(path, *folders)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "opt": None}, "holds the keys 'state_dict', 'opt'; the authors' checkpoint is a dict with"),
        ([1, 2], "holds list; the authors' checkpoint is a dict with 'model' and 'opt'"),
        ({"model": 3}, "'model' is int; a state dict, or a list of two, is wanted"),
        ({"model": {}}, "'model' is dict; a state dict"),
        ({"model": {"a": 1.0}}, "weight a is float, no tensor"),
        ({"model": {"a": torch.tensor([1.0, float("nan")])}}, "weight a holds NaN"),
        ({"model": {"a": torch.zeros(1)}, "opt": "x"}, "'opt' is str; an argparse.Namespace or a dict is wanted"),
        ({"model": {"a": torch.zeros(1)}}, "neither embed_size nor the heads"),
    ],
)
def test_content_of_another_kind(tmp_path, folders, content, message):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=message):
        import_official(tmp_path / "model.pth", *folders)


def test_no_such_file_and_no_such_folder(tmp_path, folders, golden_checkpoint):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        import_official(tmp_path / "no.pth", *folders)
    with pytest.raises(EncoderError, match="is no folder"):
        import_official(golden_checkpoint, tmp_path / "none", folders[1])


@pytest.mark.parametrize(
    "name",
    ["txt_enc.fc.weight", "img_enc.visual_encoder.encoder.layer.1.output.dense.bias", "txt_enc.mlp.bns.0.running_mean"],
)
def test_missing_weights_are_named_as_the_authors_do(imported, weights, name):
    with pytest.raises(CheckpointError, match=rf"1 weights are missing: {name}"):
        imported({key: value for key, value in weights.items() if key != name})


def test_what_does_not_fit_names_both(imported, weights, folders, tmp_path):
    other = {**weights, "txt_enc.ln.weight": torch.zeros(7)}
    with pytest.raises(CheckpointError, match=r"txt_enc.ln.weight has shape \(7,\), text_head.norm.weight .* \(40,\)"):
        imported(other)
    wide = changed(folders[0], tmp_path / "wide", hidden_size=36)
    with pytest.raises(CheckpointError, match=r"do not fit .*cls_token has shape \(1, 1, 48\), .* \(1, 1, 36\)"):
        imported(weights, folders=(wide, folders[1]))
    patch = changed(folders[0], tmp_path / "patch", patch_size=8, image_size=24)
    with pytest.raises(CheckpointError, match=r"projection.weight has shape \(48, 3, 16, 16\), .* \(48, 3, 8, 8\)"):
        imported(weights, folders=(patch, folders[1]))
    with pytest.raises(CheckpointError, match=r"D is not one number \(opt.embed_size: 48, img_enc.*: 40"):
        imported(weights, opt={"embed_size": 48})


def test_blocks_without_a_place_are_no_unused_weights(imported, weights, folders, tmp_path):
    """A shallower configuration would take the file and give other numbers."""
    shallow = changed(folders[0], tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"16 weights of the encoders have no place .* img_enc.*layer\.1\."):
        imported(weights, folders=(shallow, folders[1]))
    swin = changed(folders[0], tmp_path / "swin", model_type="swin", hidden_size=None)
    with pytest.raises(CheckpointError, match="model_type 'swin'; the authors' checkpoints hold a ViT"):
        imported(weights, folders=(swin, folders[1]))


def test_the_width_of_blocks(imported, weights):
    assert imported(weights, opt={"block_dim": [10]}, block_width=None).model.block_width == 10
    assert imported(weights, opt={"block_dim": 20}, block_width=None).model.block_width == 20
    found = imported(weights, opt={"block_dim": [10]}, block_width=8)
    assert found.model.block_width == 8 and found.notes == ["block width 8 as asked; the file says 10"]
    with pytest.raises(ConfigError, match="block_width 256 does not divide embed_dim 40"):
        imported(weights, block_width=None)
    with pytest.raises(CheckpointError, match=r"block_dim is \[8, 10\], not one width: say it with --block-width"):
        imported(weights, opt={"block_dim": [8, 10]}, block_width=None)


def test_views_as_the_file_says(imported, weights):
    assert imported(weights).model.config.num_views == 2
    assert imported(weights, opt={"n_group": 3}).model.num_image_blocks == 15


def test_the_side_of_the_pictures(imported, weights, folders, tmp_path):
    def side(found):
        assert found.model.image_encoder.grid == (found.model.image_encoder.pixels.size[0] // 16,) * 2
        return found.model.image_encoder.pixels.size[0], " ".join(found.notes)

    assert side(imported(weights)) == (48, "")
    assert side(imported(weights, opt={"img_res": 48})) == (48, "")
    pixels, said = side(imported(weights, opt={"img_res": 224}))
    assert pixels == 48 and "img_res 224, their default" in said
    pixels, said = side(imported(weights, opt={"img_res": 64}))
    assert pixels == 64 and "interpolated" in said
    assert side(imported(weights, opt={"img_res": 64}, resolution=96))[0] == 96
    with pytest.raises(CheckpointError, match="resolution 50 is no multiple of the patch size 16"):
        imported(weights, resolution=50)

    larger = changed(folders[0], tmp_path / "larger", image_size=64), folders[1]
    with pytest.raises(CheckpointError, match=r"for 3x3 cells, pictures of 48 px, .* 64: .* or say --resolution 48"):
        imported(weights, folders=larger)
    found = imported(weights, folders=larger, resolution=48)
    assert side(found)[0] == 48
    pictures = torch.rand(1, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(found.model.embed_pixels(pictures), imported(weights).model.embed_pixels(pictures))
