"""What is handed out: one version everywhere, a wheel and an sdist with all that belongs in them and nothing else."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import avse

ROOT = Path(__file__).parents[2]


def build(folder: Path, out: Path, *kinds: str) -> None:
    """Build in the tests' own environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", str(out), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def contents(wheel: Path) -> dict[str, int]:
    """Names in a wheel and the checksums of what they hold."""
    with zipfile.ZipFile(wheel) as archive:
        return {item.filename: item.CRC for item in archive.infolist()}


def test_the_version_is_one():
    version = re.escape(avse.__version__)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert re.search(rf"^## {version}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.slow
def test_wheel_and_sdist_are_complete_and_of_one_content(tmp_path):
    pytest.importorskip("hatchling")
    build(ROOT, tmp_path / "direct", "--sdist", "--wheel")
    (wheel,) = (tmp_path / "direct").glob("avse-*.whl")
    (sdist,) = (tmp_path / "direct").glob("avse-*.tar.gz")
    held = contents(wheel)
    src = ROOT / "src"
    ours = {path.relative_to(src).as_posix() for path in (src / "avse").rglob("*") if path.is_file()}
    ours = {name for name in ours if "__pycache__" not in name}
    about = {name for name in held if ".dist-info/" in name}
    assert set(held) - about == ours
    assert {"avse/py.typed", "avse/recipes/demo.yaml", "avse/serve/static/index.html"} <= ours
    assert any(name.endswith("licenses/LICENSE") for name in about)
    assert f"avse-{avse.__version__}-py3-none-any.whl" == wheel.name

    with tarfile.open(sdist) as archive:
        names = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
        assert not [name for name in names if re.search(r"__pycache__|\.venv|node_modules|^(runs|data|site)/", name)]
        for wanted in ("tests/conftest.py", "tests/golden/vit_model.safetensors", "docs/method.md", "mkdocs.yml"):
            assert wanted in names
        assert {"constraints.txt", "Makefile", ".ci/run", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md"} <= set(
            names
        )
        if sys.version_info >= (3, 12):
            archive.extractall(tmp_path / "unpacked", filter="data")
        else:
            archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    build(folder, tmp_path / "again", "--wheel")
    assert contents(tmp_path / "again" / wheel.name) == held
