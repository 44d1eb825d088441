"""The command line on tiny encoders and made scenes: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from avse.cli import main
from avse.data.scenes import make_scenes

PROGRESS = re.compile(r"\d+%\||\d+(pic|picture|batch|step|it)\b.*[/\]]|\d[\d.]*(pic|picture|batch|step|it)/s")


class Said(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines on stderr besides progress bars and the counts of what was read."""
        lines = [part for line in self.err.split("\n") for part in line.split("\r") if part.strip()]
        return [
            line for line in lines if not PROGRESS.search(line) and not re.search(r"images?, [\d,]+ captions", line)
        ]

    @property
    def json(self) -> list:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def avse(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a verb in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def threads():
    """Put torch's number of threads back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tiny_vit_folder: Path, tiny_bert_folder: Path) -> list[str]:
    """Settings of a model that trains in a second."""
    settings = {
        "model.image_encoder.source": tiny_vit_folder,
        "model.text_encoder.source": tiny_bert_folder,
        "model.embed_dim": 16,
        "model.block_width": 8,
        "train.epochs": 2,
        "train.batch_size": 10,
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_scenes(folder, count=40, size=64, seed=0)
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory, scenes: Path, tiny: list[str]) -> Path:
    """A finished run; the tests leave it as it is."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arguments = ["train", str(scenes), "--out", str(folder), "--cache", str(folder.parent / "cache"), *tiny]
    assert main(arguments) == 0
    return folder


def write_lines(folder: Path, lines: list[dict]) -> None:
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (folder / "captions.jsonl").write_text(text, "utf-8")


def huge_png() -> bytes:
    """The header of a PNG of 400 megapixels and nearly nothing behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.fixture(scope="session")
def odd_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of every kind of picture, each in train, val and test: six that can be used and three that cannot."""
    folder = tmp_path_factory.mktemp("odd") / "set"
    folder.mkdir()
    random = np.random.default_rng(0)
    lines = []
    for split in ("train", "val", "test"):
        noise = Image.fromarray(random.integers(0, 255, (40, 60, 3), np.uint8))
        noise.convert("RGBA").save(folder / f"{split}-rgba.png")
        Image.fromarray(random.integers(0, 2**16, (40, 60), np.uint16)).save(folder / f"{split}-16bit.png")
        noise.convert("CMYK").save(folder / f"{split}-cmyk.jpg")
        noise.convert("L").save(folder / f"{split}-grey.png")
        exif = Image.Exif()
        exif[0x0112] = 6
        noise.save(folder / f"{split}-turned.jpg", exif=exif)
        frames = [noise, noise.rotate(180)]
        frames[0].save(folder / f"{split}-moving.gif", save_all=True, append_images=frames[1:])
        noise.save(folder / f"{split}-cut.jpg")
        whole = (folder / f"{split}-cut.jpg").read_bytes()
        (folder / f"{split}-cut.jpg").write_bytes(whole[: len(whole) // 2])
        (folder / f"{split}-huge.png").write_bytes(huge_png())
        names = ["rgba.png", "16bit.png", "cmyk.jpg", "grey.png", "turned.jpg", "moving.gif"]
        names += ["cut.jpg", "huge.png", "gone.png"]
        lines += [{"image": f"{split}-{name}", "captions": [f"a {name[:3]} dog"], "split": split} for name in names]
    write_lines(folder, lines)
    return folder


@pytest.fixture(params=["no pictures", "no caption file", "no captions", "an empty file", "no picture can be read"])
def unusable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A data set that cannot be used at all, and what has to be said of it."""
    folder = tmp_path / "set"
    folder.mkdir()
    names = [f"{split}{i}.png" for split in ("train", "val", "test") for i in range(2)]
    lines = [{"image": name, "captions": ["a dog"], "split": name[:-5]} for name in names]
    message = "nothing usable in split"
    if request.param != "no pictures":
        for i, name in enumerate(names):
            Image.new("RGB", (40, 40), (40 * i, 0, 0)).save(folder / name)
    if request.param == "no caption file":
        return folder, "holds neither captions.jsonl nor captions.csv"
    if request.param == "no captions":
        lines = [{**line, "captions": []} for line in lines]
    if request.param == "an empty file":
        lines, message = [], "no images in it"
    if request.param == "no picture can be read":
        message = "pictures can be read"
        for name in names:
            (folder / name).write_bytes((folder / name).read_bytes()[:60])
    write_lines(folder, lines)
    return folder, message
