"""`avse recipes`: a line each, recipes that can be used as they are printed, and what they cost."""

from __future__ import annotations

import re

import pytest

from avse.config import load_recipe, shipped_recipes
from avse.cost import cost


def test_names_and_contents(avse, tmp_path):
    said = avse("recipes")
    lines = said.out.splitlines()
    assert said.code == 0 and lines[0].split() == ["name", "what", "expected", "reproduced"]
    assert [line.split()[0] for line in lines[1:]] == shipped_recipes()
    for name in shipped_recipes():
        path = tmp_path / f"{name}.yaml"
        path.write_text(avse("recipes", name).out)
        assert load_recipe(path) == load_recipe(name)


def test_a_line_says_what_is_trained_and_what_is_expected(avse):
    lines = {line.split()[0]: re.split(r"  +", line) for line in avse("recipes").out.splitlines()}
    assert lines["flickr30k-butd-bert-ensemble"][1:] == [
        "2 models, flickr30k-regions, 36 regions of 2048 + bert-base-uncased, V/D/C 6/1024/512",
        "rsum 527.2",
        "not run",
    ]
    assert lines["coco-swin384"][2:] == ["-", "not run"] and lines["demo"][1].startswith("your data, ")
    facts = {line["name"]: line for line in avse("recipes", "--json").json}
    assert list(facts) == shipped_recipes()
    assert facts["flickr30k-vit224"]["expected"] == {"rsum": 512.3, "i2t_r1": 76.0, "t2i_r1": 62.7}
    assert "second-hand" in facts["flickr30k-vit224"]["expected_from"]
    [whole] = avse("recipes", "coco-vit384", "--json").json
    assert whole["model"]["image_encoder"]["source"] == "google/vit-base-patch16-384"


def test_what_it_costs(avse):
    said = avse("recipes", "--cost", "--json")
    assert said.code == 0 and [line["name"] for line in said.json] == shipped_recipes()
    lines = {line["name"]: line for line in said.json}
    told = cost(load_recipe("flickr30k-swin224"))
    assert lines["flickr30k-swin224"]["hours"] == round(told.hours(60), 2)
    assert lines["flickr30k-swin224-ensemble"]["hours"] == round(2 * told.hours(60), 2)
    assert lines["flickr30k-swin224"]["images/s"] == round(128 * 60e12 / told.step_flops)
    assert lines["demo"]["hours"] is None and "not known" in lines["demo"]["how"]
    [fast] = avse("recipes", "flickr30k-swin224", "--cost", "--tflops", 120, "--json").json
    assert fast["hours"] == round(told.hours(120), 2) and "computed, at 120 TFLOP/s" in fast["how"]
    text = avse("recipes", "flickr30k-swin224", "--cost").out.splitlines()
    assert len(text) == 2 and f"{told.steps:,}" in text[1].split()
    with pytest.raises(SystemExit):
        avse("recipes", "--cost", "--tflops", 0)


@pytest.mark.parametrize(("name", "near"), [("dmeo", "demo"), ("flickr30k-vit-224", "flickr30k-vit224")])
def test_an_unknown_name_suggests_the_nearest(avse, name, near):
    said = avse("recipes", name)
    assert said.code == 1 and said.out == ""
    told = f"no recipe {name!r}: neither a file nor a shipped recipe (avse recipes lists them); did you mean {near!r}?"
    assert said.lines == [f"avse recipes: {told}"]
