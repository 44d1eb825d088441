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
    for asked in ({}, {"preset": "vse_infinity"}, {"overrides": ["train.lr=1"]}):
        with pytest.raises(ConfigError, match=r"r.yaml: unknown key 'train.learning_rate'"):
            load_recipe(path, **asked)
    path.write_text("train:\n  lr: 1e-4\n")
    with pytest.raises(ConfigError, match="^unknown key 'train.lrr'"):  # not the file's
        load_recipe(path, ["train.lrr=1"])
    with pytest.raises(ConfigError, match="unknown key 'model.image_encoder.resolutoin'; did you mean 'resolution'"):
        load_recipe(None, ["model.image_encoder.resolutoin=224"])


def test_wrong_values_name_key_limit_and_value():
    with pytest.raises(ConfigError, match=r"keep: .*less than or equal to 1.*got 1.5"):
        parse(ModelConfig, {"keep": 1.5})
    with pytest.raises(ConfigError, match="objective"):
        load_recipe(None, ["train.objective=softmax"])


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [", "r.yaml: not readable as YAML: line 1, column 5: expected the node content"),
        (b"train:\n  lr: 2020-13-45\n", "r.yaml: not readable as YAML: month must be in 1..12"),
        (b"\xff\xfe", "r.yaml: not readable as YAML: .*decode"),
        (b"- 1\n", "r.yaml: expected a mapping of sections, found list"),
        (b"1: 2\n", "r.yaml: key 1 is no name: names are text, such as model"),
        (b"train:\n  1: 2\n", "r.yaml: key 1 in train is no name"),
        (b"train: 5\n", "r.yaml: train: .*valid dictionary.*got 5"),
        (b"eval:\n  bootstrap: 5\n", "r.yaml: unknown key 'eval'; known are data, ensemble, expected"),
    ],
)
def test_wrong_yaml_is_named_in_one_line(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message) as failure:
        load_recipe(path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=[", r"--set 'train\.lr=\[': the value is not YAML: line 1, column 2"),
        ("train.lr", "expected section.key=value"),
        ("=5", "unknown key ''; known are data, ensemble, expected"),
        ("train={1: 2}", "key 1 in train is no name"),
        ("train.clip_norm.x=3", "train.clip_norm: .*valid number"),
    ],
)
def test_wrong_overrides_are_named_in_one_line(override, message):
    with pytest.raises(ConfigError, match=message) as failure:
        load_recipe(None, [override])
    assert "\n" not in str(failure.value)


def test_the_file_then_the_preset_then_single_settings(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: {embed_dim: 64, block_width: 16}\ntrain: {decorrelation_weight: 2.0, epochs: 3}\n")
    recipe = load_recipe(path, preset="infonce")
    assert (recipe.model.num_views, recipe.model.embed_dim, recipe.model.block_width) == (1, 64, 64)
    assert (recipe.train.decorrelation_weight, recipe.train.epochs, recipe.train.objective) == (0.0, 3, "infonce")
    changed = load_recipe(path, ["train.decorrelation_weight=0.5", "model.block_width=32"], "infonce")
    assert changed.train.decorrelation_weight == 0.5 and changed.model.block_width == 32
    # one block stays one block, whatever width is asked for
    narrow = load_recipe(path, ["model.embed_dim=24"], "vse_infinity").model
    assert (narrow.embed_dim, narrow.block_width, narrow.num_text_blocks) == (24, 24, 1)
    assert load_recipe(path, [], "vse_infinity_wide").model.block_width == 128
    with pytest.raises(ConfigError, match="did you mean 'infonce'"):
        load_recipe(path, [], "infonec")


def test_the_official_preset_says_which_encoders_it_needs():
    with pytest.raises(ConfigError, match="model.image_encoder.source=FOLDER and model.text_encoder.source=FOLDER"):
        load_recipe(preset="official")
    recipe = load_recipe(None, ["model.image_encoder.source=vit", "model.keep_eval=0.5"], "official")
    assert recipe.model.image_encoder.sampling_stage == "input" and recipe.model.keep_eval == 0.5
    assert load_recipe(None, ["model.image_encoder.sampling_stage=output"], "official").model.embed_dim == 1024


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
