"""`avse recipes`: names, and recipes that can be used as they are printed."""

from __future__ import annotations

from avse.config import load_recipe, shipped_recipes


def test_names_and_contents(avse, tmp_path):
    said = avse("recipes")
    assert said.code == 0 and said.out.split() == shipped_recipes()
    for name in said.out.split():
        path = tmp_path / f"{name}.yaml"
        path.write_text(avse("recipes", name).out)
        assert load_recipe(path) == load_recipe(name)


def test_an_unknown_name_lists_the_known(avse):
    said = avse("recipes", "dmeo")
    assert said.code == 1 and said.out == ""
    assert said.lines == [f"avse recipes: no recipe 'dmeo': neither a file nor one of {', '.join(shipped_recipes())}"]
