"""README's commands and code, run as they stand on tiny made scenes: a reader can follow them to the letter."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from avse.data.scenes import make_scenes

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FAST = (
    "--set model.embed_dim=64 --set model.block_width=32 --set train.epochs=2 --set model.image_encoder.resolution=96"
)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The commands of "Your own pictures", run in a fresh folder with the real encoders on 40 small scenes."""
    folder = tmp_path_factory.mktemp("readme")
    make_scenes(folder / "my-pictures", count=40, size=64, seed=0)
    return folder, commands("avse train", folder)


def commands(marker, folder):
    """Run the lines of the block with `marker` but those of a server, and return what each verb printed."""
    done = {}
    for command in next(b for b in blocks("sh") if marker in b).strip().splitlines():
        words = shlex.split(command, comments=True)
        assert words[0] == "avse"
        if words[1] == "serve":  # tests/serve does that
            continue
        if words[1] == "train":
            words += shlex.split(FAST)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            [sys.executable, "-m", "avse", *words[1:]], cwd=folder, capture_output=True, text=True, env=environment
        )
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        done[words[1]] = result.stdout
    return done


def test_the_commands_do_what_they_say(folder):
    where, done = folder
    assert "rSum" in done["evaluate"] and "split test" in done["evaluate"]
    assert len([line for line in done["search"].splitlines() if re.match(r"\s*[1-5]\s", line)]) == 5
    assert (where / "answers.png").read_bytes().startswith(b"\x89PNG")


def test_the_reason_why(folder):
    where, _ = folder
    done = commands("avse explain", where)
    assert "star" in done["explain"] and "rSum" in done["evaluate"]
    assert (where / "why.png").read_bytes().startswith(b"\x89PNG")
    assert (where / "report.html").read_text().startswith("<!doctype html>")


def test_the_code_runs(folder):
    where, _ = folder
    [code] = blocks("python")
    path = sorted((where / "my-pictures").rglob("*.png"))[0].relative_to(where).as_posix()
    code = code.replace("my-pictures/images/000000.png", path)
    code += "\nassert scores.shape == (1, 2) and images.shape[1:] == (4, 32) and report.rsum > 0\n"
    result = subprocess.run([sys.executable, "-c", code], cwd=where, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.strip().splitlines()) >= 3


def test_the_other_commands_named_in_the_text(tmp_path):
    named = re.findall(r"`(avse (?:data scenes|recipes)[^`]*)`", README)
    assert len(named) >= 2
    for command in named:
        result = subprocess.run(
            [sys.executable, "-m", "avse", *shlex.split(command)[1:]], cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


def test_the_first_commands_are_the_makefile_s():
    first = blocks("sh")[0].splitlines()
    targets = [line.split("#")[0].split()[1] for line in first]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_no_figure_is_left_to_be_filled_in():
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        assert "@@" not in path.read_text(), path


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).is_file(), target
