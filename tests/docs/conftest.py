"""What the pages speak of, tiny: made scenes, a trained model, an index, folders of encoders."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from avse.cli import main
from avse.data.scenes import make_scenes

sys.path.append(str(Path(__file__).parents[1] / "serve"))  # for serve_kit, a server in a thread


@pytest.fixture(scope="session")
def world(tmp_path_factory, tiny_vit_folder, tiny_bert_folder, pair_folders) -> Path:
    """A folder as a reader has it after the start page; the tests take copies of its parts."""
    folder = tmp_path_factory.mktemp("world")
    make_scenes(folder / "my-pictures", count=40, size=64, seed=0)
    models = folder / "models"
    shutil.copytree(tiny_vit_folder, models / "vit-base-patch16-224")
    shutil.copytree(tiny_bert_folder, models / "bert-base-uncased")
    shutil.copytree(pair_folders["clip"], models / "clip-vit-base-patch32")
    settings = {
        "model.image_encoder.source": models / "vit-base-patch16-224",
        "model.text_encoder.source": models / "bert-base-uncased",
        "model.embed_dim": 16,
        "model.block_width": 8,
        "train.epochs": 1,
        "train.batch_size": 10,
    }
    tiny = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    pictures, run = str(folder / "my-pictures"), folder / "runs" / "mine"
    assert main(["train", pictures, "--out", str(run), "--cache", str(folder / "cache"), *tiny]) == 0
    assert main(["index", pictures, "--model", str(run / "model"), "--out", str(folder / "photos.avse")]) == 0
    return folder


@pytest.fixture
def lay_out(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Copy parts of the world into the test's folder, which becomes the working folder."""

    def lay(*parts: str) -> Path:
        """Copy each part, to its own place or, written "place=part", to another."""
        for place, part in (part.split("=") if "=" in part else (part, part) for part in parts):
            source, target = world / part, tmp_path / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return tmp_path

    return lay
