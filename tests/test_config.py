"""Settings: nothing is silently wrong."""

import pytest

from avse.config import (
    PRESETS,
    ConfigError,
    ModelConfig,
    Recipe,
    apply_preset,
    load_recipe,
    parse,
    shipped_recipes,
    to_yaml,
)


def test_unknown_keys_suggest_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match=r"unknown key 'num_veiws'; did you mean 'num_views'\?"):
        parse(ModelConfig, {"num_veiws": 2})
    path = tmp_path / "r.yaml"
    path.write_text("train:\n  learning_rate: 1\n")
    with pytest.raises(ConfigError, match="unknown key 'train.learning_rate'"):
        load_recipe(path)
    with pytest.raises(ConfigError, match="unknown key 'model.image_encoder.resolutoin'; did you mean 'resolution'"):
        load_recipe(None, ["model.image_encoder.resolutoin=224"])


def test_wrong_values_name_key_limit_and_value():
    with pytest.raises(ConfigError, match=r"keep: .*less than or equal to 1.*got 1.5"):
        parse(ModelConfig, {"keep": 1.5})
    with pytest.raises(ConfigError, match="objective"):
        load_recipe(None, ["train.objective=softmax"])
    with pytest.raises(ConfigError, match="expected section.key=value"):
        load_recipe(None, ["train.lr"])


def test_blocks_must_divide_the_width():
    with pytest.raises(ConfigError, match="block_width 100 does not divide embed_dim 512; the nearest .* 128, 64"):
        parse(ModelConfig, {"block_width": 100})
    config = ModelConfig()
    assert (config.num_image_blocks, config.num_text_blocks) == (4, 2)  # P,Q of the paper's D = 512, C = 256
    wide = ModelConfig(embed_dim=1024)
    assert (wide.num_image_blocks, wide.num_text_blocks) == (8, 4)


def test_yaml_round_trip_and_overrides(tmp_path):
    recipe = load_recipe(None, ["train.lr=1e-4", "model.num_views=3", "train.step_epochs=[3, 5]", "data.source=x"])
    assert recipe.train.lr == 1e-4 and recipe.model.num_views == 3 and recipe.train.step_epochs == (3, 5)
    path = tmp_path / "r.yaml"
    path.write_text(to_yaml(recipe))
    assert load_recipe(path) == recipe


def test_shipped_recipes_all_parse():
    names = shipped_recipes()
    assert "demo" in names
    for name in names:
        assert isinstance(load_recipe(name), Recipe)
    with pytest.raises(ConfigError, match="no recipe 'dmeo'"):
        load_recipe("dmeo")


def test_broken_yaml_is_named(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("a: [")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_recipe(path)
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        load_recipe(path)


def test_presets_are_the_same_parts():
    base = load_recipe("demo")
    for name in PRESETS:
        assert isinstance(apply_preset(base, name), Recipe)
    narrow = apply_preset(Recipe(), "vse_infinity").model
    assert (narrow.num_views, narrow.num_image_blocks, narrow.num_text_blocks) == (1, 1, 1)
    wide = apply_preset(Recipe(), "vse_infinity_wide").model
    assert wide.embed_dim == wide.block_width == 2 * Recipe().model.embed_dim  # as wide as AVSE's image side
    official = apply_preset(Recipe(), "official")
    assert (official.model.num_image_blocks, official.model.num_text_blocks) == (8, 4)
    assert official.model.keep_eval == 0.9 and official.train.off_diagonal_weight == 0.0051
    with pytest.raises(ConfigError, match="did you mean 'vse_infinity'"):
        apply_preset(Recipe(), "vse_infinit")
