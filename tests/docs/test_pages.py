"""The site, the drawings and the tables of docs: complete, and what the code says."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import PAGES, ROOT, name_of
from PIL import Image

DOCS, IMAGES, RESULTS = ROOT / "docs", ROOT / "docs" / "images", ROOT / "benchmarks" / "results"


def module_of(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


redraw = module_of(ROOT / "benchmarks" / "redraw.py")


def floors() -> dict[str, int]:
    """FLOORS of the house's test, by its syntax tree."""
    for node in ast.parse((ROOT / "tests" / "test_house.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "FLOORS":
            return ast.literal_eval(node.value)
    raise AssertionError("no FLOORS")


def names_in(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [name for one in (nav if isinstance(nav, list) else nav.values()) for name in names_in(one)]


def test_every_page_is_in_the_navigation_once():
    nav = names_in(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(name_of(page) for page in PAGES if DOCS in page.parents)


def test_the_table_of_rooms_is_that_of_the_house():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| (.+) \|$", (DOCS / "architecture.md").read_text(), re.MULTILINE)
    assert {room: int(floor) for floor, room, _ in rows} == floors() and len(rows) == len(floors())
    assert all(len(told) > 10 for _, _, told in rows)


def test_the_data_s_way_goes_through_rooms_that_are_there():
    assert set(redraw.WAY) <= set(floors())
    assert {room for arrow in redraw.ARROWS for room in arrow} == set(redraw.WAY)


def test_the_worked_example_adds_up():
    """Every cell of the table by fractions, from the vectors in its margins; the drawing has the same vectors."""
    page = (DOCS / "method.md").read_text()
    head, rows, best = (
        next(line for line in page.splitlines() if "text block t₁" in line),
        [line for line in page.splitlines() if line.startswith("| image block v")],
        next(line for line in page.splitlines() if line.startswith("| best")),
    )

    def vector(text: str) -> list[Fraction]:
        return [Fraction(value) for value in re.search(r"\(([^)]+)\)", text)[1].split(", ")]

    texts = [vector(cell) for cell in head.split("|")[2:4]]
    images = [vector(row.split("|")[1]) for row in rows]
    assert all(sum(value * value for value in v) == 1 for v in texts + images)
    table = [[sum(a * b for a, b in zip(v, t)) for t in texts] for v in images]
    told = [[Fraction(re.search(r"= \**([\d.]+)", cell)[1]) for cell in row.split("|")[2:4]] for row in rows]
    assert told == table
    columns = [max(column) for column in zip(*table)]
    assert [Fraction(cell.split()[0]) for cell in best.split("|")[2:4]] == columns
    asked = re.search(r"^S = .* = (\d\.\d+)\.", page, re.MULTILINE)[1]
    back = re.search(r"= (\d\.\d+): S is not", page)[1]
    assert Fraction(asked) == sum(columns) and Fraction(back) == sum(max(row) for row in table)
    drawn = [[[Fraction(str(x)) for x in v] for v in side] for side in (redraw.IMAGE_BLOCKS, redraw.TEXT_BLOCKS)]
    assert drawn == [images, texts]


def test_kept_results_stand_with_their_machine():
    kept = sorted(RESULTS.iterdir())
    assert len(kept) >= 6
    for path in kept:
        text = path.read_text()
        told = json.loads(text.splitlines()[0] if path.suffix == ".jsonl" else text)
        assert {"processor", "cores", "torch", "date"} <= set(told["machine"]), path
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", told["machine"]["date"])


def test_every_picture_has_a_maker():
    """Drawn by redraw.py, or named in CONTRIBUTING with the command that shows it; none is left over."""
    shown = set(re.findall(r"\]\([./a-z]*images/([\w-]+\.png)\)", "".join(page.read_text() for page in PAGES)))
    there = {path.name for path in IMAGES.iterdir()}
    told = (ROOT / "CONTRIBUTING.md").read_text()
    assert set(redraw.PICTURES) <= there
    for name in there:
        assert name in redraw.PICTURES or f"`{name}`" in told, name
    assert shown <= there


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(redraw.PICTURES))
def test_the_kept_drawing_is_what_the_script_draws(name, tmp_path):
    redraw.PICTURES[name](tmp_path / name)
    kept, drawn = (np.asarray(Image.open(folder / name).convert("RGB"), float) for folder in (IMAGES, tmp_path))
    assert kept.shape == drawn.shape and np.abs(kept - drawn).mean() < 1.0


def test_the_names_that_others_rely_on_are_in_the_reference():
    """What avse exports, and the rooms' faces; the strict build finds each, or fails."""
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    named = set(re.findall(r"^::: ([\w.]+)$", pages, re.MULTILINE))
    wanted = {"avse.model.AVSE", "avse.index.Index", "avse.trainer.loop.Trainer", "avse.data.load_dataset"}
    wanted |= {
        "avse.evaluate.evaluate",
        "avse.scoring.aeom.aeom",
        "avse.scoring.topk.topk",
        "avse.scoring.ranking.rank_of",
    }
    wanted |= {"avse.sampling", "avse.metrics", "avse.explain.explain", "avse.config", "avse.losses"}
    assert wanted <= named


@pytest.mark.slow
def test_the_site_builds_strictly_and_needs_no_other_machine(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= sum(DOCS in page.parents for page in PAGES)
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe)[^>]+src=\"([^\"]+)\"", text)
        loaded += re.findall(r"<link[^>]+rel=\"(?:stylesheet|icon|preconnect|preload)\"[^>]*href=\"([^\"]+)\"", text)
        assert not [one for one in loaded if re.match(r"(https?:)?//", one)], page
    model = (tmp_path / "site" / "api" / "model.html").read_text()
    assert "encode_images" in model and "Raises" in model
    scores = (tmp_path / "site" / "api" / "scoring.html").read_text()
    assert "max_i ⟨v_i, t_j⟩" in scores  # < and > would be a tag, and vanish


def test_no_figure_is_left_to_be_filled_in():
    for page in PAGES:
        assert not re.search(r"@@|\b[A-Z]+_TIMES?\b|TODO|TBD", page.read_text()), page
