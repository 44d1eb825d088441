"""Every shipped recipe: parsed, its figures those of the literature, and trained for two steps on a miniature.

The miniatures lie on disk as Flickr30K and MS-COCO do; encoders are shrunk within their family, D and C keep the ratio.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from avse.cli import main
from avse.config import load_recipe, shipped_recipes

ROWS = ("vit224", "vit384", "swin224", "swin384", "butd-bigru", "butd-bert", "vinvl-bigru", "vinvl-bert")
PAPER = [f"{data}-{row}{end}" for data in ("flickr30k", "coco") for row in ROWS for end in ("", "-ensemble")]
# docs/method, section 6: rSum on Flickr30K and on COCO-1K, single and ensemble; R@1 of both directions on Flickr30K.
RSUMS = {
    "butd-bigru": (515.5, 527.5, 520.4, 530.2),
    "butd-bert": (523.1, 533.2, 527.2, 536.2),
    "vinvl-bigru": (541.1, 539.3, None, None),
    "vinvl-bert": (550.0, 546.7, 553.5, 549.2),
    "vit224": (512.3, None, None, None),
    "swin384": (548.2, None, None, None),
}
RECALLS = {
    "butd-bigru": (81.5, 61.9),
    "butd-bert": (83.1, 64.4),
    "vinvl-bert": (89.6, 73.1),
    "vit224": (76.0, 62.7),
    "swin384": (87.1, 73.6),
}
COLOURS = ("red", "green", "blue", "yellow", "black", "white")


class World(NamedTuple):
    """Where the miniatures and the shrunk encoders lie."""

    data: dict[str, Path]
    encoders: dict[str, Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_vit_folder, tiny_swin_folder, tiny_bert_folder, pair_folders) -> World:
    from transformers import Dinov2Config, Dinov2Model

    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "f30k", "dataset_flickr30k.json", ("train", "train", "val", "test"), "flickr30k-images")
    write_pictures(root / "coco", "dataset_coco.json", ("train", "restval", "val", "test"), "images")
    for kind, width in (("butd", 2048), ("vinvl", 2054)):
        for family in ("f30k", "coco"):
            write_regions(root / kind / f"{family}_precomp", width)
    dinov2 = tmp_path_factory.mktemp("encoders") / "dinov2"
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=48, patch_size=8
    )
    Dinov2Model(config).eval().save_pretrained(dinov2)
    encoders = {"vit": tiny_vit_folder, "swin": tiny_swin_folder, "bert": tiny_bert_folder, "dinov2": dinov2}
    encoders |= pair_folders
    return World({"pictures": root, "butd": root / "butd", "vinvl": root / "vinvl"}, encoders)


def sentences(kind: int) -> list[str]:
    return [f"a {COLOURS[kind]} dog runs on the grass", f"the {COLOURS[kind]} dog"]


def write_pictures(folder: Path, name: str, splits: tuple[str, ...], pictures: str) -> None:
    """Karpathy's file and its pictures, three of each split named."""
    images = []
    for place, split in enumerate(splits):
        part = {"train": "train2014"}.get(split, "val2014") if "coco" in name else ""
        (folder / pictures / part).mkdir(parents=True, exist_ok=True)
        for i in range(3):
            kind, file = (3 * place + i) % 6, f"{split}{place}{i}.jpg"
            values = np.random.default_rng(kind).integers(0, 255, (40, 50, 3), np.uint8)
            Image.fromarray(values).save(folder / pictures / part / file)
            said = [{"raw": text} for text in sentences(kind)]
            where = {"filepath": part, "cocoid": 3 * place + i} if part else {}
            ids = [2 * (3 * place + i), 2 * (3 * place + i) + 1]
            images.append({"filename": file, "split": split, "sentences": said, "sentids": ids, **where})
    (folder / name).write_text(json.dumps({"images": images}))


def write_regions(folder: Path, width: int) -> None:
    """The layout of features: six images for training, three for validation, two captions each."""
    folder.mkdir(parents=True)
    for split, count in (("train", 6), ("dev", 3), ("test", 3)):
        random = np.random.default_rng(count)
        np.save(folder / f"{split}_ims.npy", random.normal(0, 1, (count, 36, width)).astype(np.float32))
        lines = [text for kind in range(count) for text in sentences(kind)]
        (folder / f"{split}_caps.txt").write_text("\n".join(lines) + "\n")


def shrunk(name: str, world: World, out: Path) -> list[str]:
    """What makes a recipe small: encoders of the same families, D 16 with as many blocks, two steps."""
    recipe = load_recipe(name)
    image, text = recipe.model.image_encoder, recipe.model.text_encoder
    settings: dict[str, object] = {
        "model.embed_dim": 16,
        "model.block_width": 16 * recipe.model.block_width // recipe.model.embed_dim,
        "data.root": world.data["pictures"],
        "data.cache": out / "cache" if image.frozen and image.source != "regions" else "null",
        **{"train.epochs": 2, "train.batch_size": 12, "train.workers": 1},
    }
    if recipe.data.source is None:
        settings["data.source"] = "flickr30k"
    if recipe.model.heads == "own":
        settings |= {"init_from": world.encoders[name], "model.embed_dim": 24 if name == "clip" else 32}
        settings["model.block_width"] = 8
        return as_options(settings)
    if image.source == "regions":
        settings["data.root"] = world.data["butd" if image.width == 2048 else "vinvl"]
    else:
        family = next((f for f in ("vit", "swin", "dinov2") if f in image.source), "vit")
        settings["model.image_encoder.source"] = world.encoders[family]
        settings["model.image_encoder.resolution"] = 48 if "384" in image.source else 32
    if text.source == "bigru":
        settings |= {"model.text_encoder.vectors": "null", "model.text_encoder.hidden": 8}
        settings["model.text_encoder.min_count"] = 1
    else:
        settings["model.text_encoder.source"] = world.encoders["bert"]
    return as_options(settings)


def as_options(settings: dict[str, object]) -> list[str]:
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def in_turn(name):
    """Ensembles in `make test-all`, but one: their members are trained as the recipe of one is."""
    rest = name.endswith("-ensemble") and name != "flickr30k-butd-bigru-ensemble"
    return pytest.param(name, marks=pytest.mark.slow if rest else ())


@pytest.mark.parametrize("name", map(in_turn, shipped_recipes()))
def test_two_steps_of_a_recipe(name, world, tmp_path, capsys):
    changes, out = shrunk(name, world, tmp_path), tmp_path / "run"
    assert main(["train", "--config", name, *changes, "--out", str(out)]) == 0
    recipe = load_recipe(name, [changes[i] for i in range(1, len(changes), 2)])
    folders = [out] if recipe.ensemble == 1 else [out / f"member-{i}" for i in range(recipe.ensemble)]
    histories = []
    for i, folder in enumerate(folders):
        kept = load_recipe(folder / "recipe.yaml")
        assert kept.train.seed == recipe.train.seed + i and kept.model == recipe.model and kept.ensemble == 1
        assert json.loads((folder / "checkpoints" / "step-00000002" / "progress.json").read_text())["step"] == 2
        histories.append(json.loads((folder / "history.json").read_text()))
        for entry in histories[-1]:
            assert entry["skipped_steps"] == 0 and math.isfinite(entry["loss"]) and entry["gradient"] > 0
        assert (folder / "model" / "model.safetensors").is_file()
    told = capsys.readouterr().out.splitlines()
    command = told[-1].split("next: ")[1].split()
    assert command[2 : 2 + len(folders)] == [str(folder / "model") for folder in folders]
    assert command[-1] == ("--ensemble" if len(folders) > 1 else str(recipe.data.root))
    assert len(folders) == 1 or histories[0] != histories[1]
    if name in ("flickr30k-butd-bigru-ensemble", "coco-swin384"):  # and what the last line says can be done
        assert main([*command[1:], "--bootstrap", "0", "--json"]) == 0
        assert '"rsum"' in capsys.readouterr().out


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_has_its_own_figures(name):
    recipe, (data, row) = load_recipe(name), name.removesuffix("-ensemble").split("-", 1)
    ensemble, coco = name.endswith("-ensemble"), data == "coco"
    figure = RSUMS.get(row, (None,) * 4)[2 * ensemble + coco]
    expected = {} if figure is None else {"coco_1k_rsum" if coco else "rsum": figure}
    if row in RECALLS and not ensemble and not coco:
        expected |= dict(zip(("i2t_r1", "t2i_r1"), RECALLS[row]))
    assert recipe.expected == expected and recipe.reproduced == "not run"
    assert recipe.settings_from and ("no figure" in recipe.expected_from) == (not expected)
    assert recipe.ensemble == (2 if ensemble else 1)


@pytest.mark.parametrize("name", PAPER)
def test_a_row_of_the_paper_has_the_settings_of_the_method(name):
    recipe = load_recipe(name)
    model, train = recipe.model, recipe.train
    regions = "butd" in name or "vinvl" in name
    sizes = (6, 1024, 512, 12, 2) if regions else (2, 512, 256, 4, 2)
    blocks = (model.num_image_blocks, model.num_text_blocks)
    assert (model.num_views, model.embed_dim, model.block_width, *blocks) == sizes
    assert recipe.data.source == name.split("-")[0] + ("-regions" if regions else "") and recipe.data.root is None
    assert (train.objective, train.score_scale, train.hard_negative_start_epoch) == ("hinge", "sum", 1)
    assert (train.decorrelation_form, train.off_diagonal_weight, train.batch_size) == ("correct", 0.005, 128)
    assert not model.text_encoder.frozen and train.epoch_of == "pairs"
    if regions:
        assert (train.epochs, train.lr, train.step_epochs, train.step_factor) == (25, 5e-4, (15,), 0.1)
        assert model.image_encoder.width == (2048 if "butd" in name else 2054) and model.sampling == "groups"
        assert train.encoder_lr == (5e-4 if "bigru" in name else 5e-5)
    else:
        assert (train.epochs, train.lr, train.encoder_lr) == (30, 2e-4, 2e-5) and not model.image_encoder.frozen
        assert (train.step_epochs, train.step_factor) == ((9, 15, 20, 25), 0.3)
        assert model.image_encoder.sampling_stage == ("output" if "swin" in name else "input")


def test_figures_are_not_inherited(tmp_path):
    (tmp_path / "own.yaml").write_text("base: flickr30k-vit224\n")
    recipe = load_recipe(tmp_path / "own.yaml")
    assert recipe.expected == {} and recipe.expected_from == "" and recipe.reproduced == "not run"
    assert recipe.model == load_recipe("flickr30k-vit224").model


REPRODUCE = (Path(__file__).parent.parent / "docs" / "reproduce.md").read_text("utf-8")


def test_the_page_lists_every_row_with_its_figures(capsys):
    main(["recipes", "--json"])
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    rows = []
    for line in told:
        if line["name"].startswith(("flickr30k-", "coco-")):
            figures = ", ".join(f"{key} {value:.1f}" for key, value in line["expected"].items()) or "-"
            state = "not reproduced here" if line["reproduced"] == "not run" else line["reproduced"]
            rows.append(f"| {line['name']} | {figures} | {line['expected_from']} | {state} |")
    assert len(rows) >= len(PAPER)
    assert [line for line in REPRODUCE.splitlines() if line.startswith(("| flickr30k-", "| coco-"))] == rows


def test_the_page_has_the_costs_as_they_are_printed(capsys):
    main(["recipes", "--cost"])
    printed = [line for line in capsys.readouterr().out.splitlines() if "-ensemble" not in line]
    wanted = [line for line in printed if line.startswith(("name ", "flickr30k-", "coco-"))]
    assert "\n".join(wanted) in REPRODUCE
