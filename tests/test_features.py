from __future__ import annotations

import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

import warm
from avse import features
from avse.config import ImageEncoderConfig, TextEncoderConfig
from avse.encoders import build_image_encoder, build_text_encoder
from avse.features import FeatureCache, FeatureError, resolve_precision, text_tokens


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eleven pictures of noise, of which number 4 is cut and number 7 is missing."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(11):
        noise = random.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:02}.png")
    cut = folder / "04.png"
    cut.write_bytes(cut.read_bytes()[:2000])
    (folder / "07.png").unlink()
    return [folder / f"{number:02}.png" for number in range(11)]


NAMES = [f"{number:02}.png" for number in range(11)]
GOOD = [0, 1, 2, 3, 5, 6, 8, 9, 10]


def vit(folder, **settings):
    return build_image_encoder(ImageEncoderConfig(source=str(folder), **settings))


@pytest.fixture
def encoder(tiny_vit_folder):
    return vit(tiny_vit_folder)


def grids(cache, encoder, pictures, **options):
    names = [path.name for path in pictures]
    return FeatureCache(cache).grids(encoder, pictures, names, **{"batch_size": 4, "progress": False, **options})


def passes(encoder) -> list[int]:
    """Count the pictures the encoder sees."""
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    return seen


def test_grids_are_those_of_the_encoder_in_float16(tmp_path, encoder, pictures):
    result = grids(tmp_path, encoder, pictures, precision="fp32")
    assert result.values.shape == (9, 17, 32) and result.values.dtype == np.float16
    assert isinstance(result.values, np.memmap) and result.kept.tolist() == GOOD and result.precision == "fp32"
    for row, picture in enumerate(GOOD):
        with torch.no_grad():
            expected = encoder(torch.from_numpy(encoder.load_pixels(pictures[picture]))[None])[0].half()
        torch.testing.assert_close(torch.from_numpy(result.values[row].copy()), expected, rtol=2e-3, atol=2e-3)
    batch = result.batch([3, 0, 3])
    assert batch.dtype == torch.float32 and torch.equal(batch[0], batch[2])
    assert np.array_equal(batch[1].numpy(), result.values[0].astype(np.float32))


def test_unreadable_pictures_are_listed(tmp_path, encoder, pictures):
    for _ in range(2):  # also when read from the disk
        skipped = grids(tmp_path, encoder, pictures).skipped
        assert [skip.name for skip in skipped] == ["04.png", "07.png"]
        assert "truncated" in skipped[0].reason and "no such file" in skipped[1].reason
    with pytest.raises(FeatureError, match="none of 2 pictures can be read; the first: 04.png: "):
        grids(tmp_path, encoder, [pictures[4], pictures[7]])


def test_the_second_time_nothing_is_computed(tmp_path, encoder, pictures):
    first, seen = grids(tmp_path, encoder, pictures), passes(encoder)
    again = grids(tmp_path, encoder, pictures, batch_size=3, workers=1)
    assert seen == [] and np.array_equal(again.values, first.values)


def test_any_change_computes_anew(tmp_path, tiny_vit_folder, encoder, pictures):
    def keys() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    used = [tmp_path / path.name for path in pictures[:3]]
    for target, path in zip(used, pictures):
        target.write_bytes(path.read_bytes())
    before = grids(tmp_path / "cache", encoder, used)
    assert keys() == 1
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    changed = grids(tmp_path / "cache", encoder, used)
    assert keys() == 2 and not np.array_equal(before.values, changed.values)
    for number, settings in enumerate([{"resolution": 48}, {"pixels": "official"}, {"final_norm": False}], 3):
        grids(tmp_path / "cache", vit(tiny_vit_folder, **settings), used)
        assert keys() == number
    used[1].write_bytes(pictures[8].read_bytes())  # the same name, another content
    other = grids(tmp_path / "cache", vit(tiny_vit_folder), used)
    assert keys() == 6
    assert np.array_equal(other.values[[0, 2]], before.values[[0, 2]])
    assert not np.array_equal(other.values[1], before.values[1])
    grids(tmp_path / "cache", vit(tiny_vit_folder), used[::-1])  # another order
    assert keys() == 7


def test_a_stopped_run_continues_behind_its_last_batch(tmp_path, encoder, pictures):
    whole = grids(tmp_path / "whole", encoder, pictures)
    calls = []

    def stop(module, inputs):
        calls.append(len(inputs[0]))
        if len(calls) == 2:
            raise KeyboardInterrupt

    hook = encoder.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        grids(tmp_path / "cut", encoder, pictures)
    hook.remove()
    seen = passes(encoder)
    again = grids(tmp_path / "cut", encoder, pictures)
    assert sum(seen) == 9 - 4 and np.array_equal(again.values, whole.values)
    assert again.kept.tolist() == GOOD and again.skipped == whole.skipped


@pytest.mark.parametrize("damage", ["cut", "flip", "journal", "longer"])
def test_a_damaged_cache_is_mended(tmp_path, encoder, pictures, damage):
    whole = np.array(grids(tmp_path, encoder, pictures).values)
    (folder,) = tmp_path.iterdir()
    data, journal = (folder / "rows.bin").read_bytes(), (folder / "journal.txt").read_bytes()
    if damage == "cut":
        (folder / "rows.bin").write_bytes(data[:-5])
    elif damage == "flip":
        (folder / "rows.bin").write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    elif damage == "longer":
        (folder / "rows.bin").write_bytes(data + data[:100])
    else:
        assert b'"done": 8' in journal
        (folder / "journal.txt").write_bytes(journal.replace(b'"done": 8', b'"done": 9'))
    assert np.array_equal(grids(tmp_path, encoder, pictures).values, whole)


def test_a_full_disk_is_said_before_anything_is_computed(tmp_path, encoder, pictures, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda path: usage(10**12, 10**12, (64 << 20) + 10_000))
    seen = passes(encoder)
    with pytest.raises(FeatureError, match=r"grids of 11 pictures need 0.00 GiB and .* has 0.00 GiB to spare.*--cache"):
        grids(tmp_path, encoder, pictures)
    assert seen == []


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"sampling_stage": "input"}, {}, "sampling_stage 'output'.*tiny-vit.*'input'"),
        ({"frozen": False}, {}, "frozen encoder.*tiny-vit.*is trained"),
        ({}, {"image_augment": True}, "tiny-vit.*image_augment exclude each other"),
        ({}, {"precision": "bf16"}, "'bf16': this cpu has no fast bf16"),
    ],
)
def test_features_that_are_not_fixed_are_refused(
    tmp_path, tiny_vit_folder, pictures, settings, options, message, monkeypatch
):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    with pytest.raises(FeatureError, match=message):
        grids(tmp_path / "cache", vit(tiny_vit_folder, **settings), pictures, **options)
    assert not (tmp_path / "cache").exists()


def test_pictures_and_ids_are_as_many_and_not_none(tmp_path, encoder, pictures):
    with pytest.raises(FeatureError, match="11 pictures, 10 ids"):
        FeatureCache(tmp_path).grids(encoder, pictures, NAMES[:-1])
    with pytest.raises(FeatureError, match="0 pictures"):
        FeatureCache(tmp_path).grids(encoder, [], [])


def test_values_beyond_float16_are_an_error_not_infinity(tmp_path, encoder, pictures):
    with torch.no_grad():
        encoder.model.layernorm.bias[3] = 1e6
    with pytest.raises(FeatureError, match="features up to 1e.06 do not fit float16.*'00.png'"):
        grids(tmp_path, encoder, pictures)


def test_precision_follows_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able, raising=False)
        assert resolve_precision("cpu", "auto") == chosen and resolve_precision("cpu", "fp32") == "fp32"


def test_bf16_is_another_key_and_close(tmp_path, encoder, pictures, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    fp32, bf16 = (grids(tmp_path, encoder, pictures, precision=p) for p in ("fp32", "auto"))
    assert bf16.precision == "bf16" and len(list(tmp_path.iterdir())) == 2
    assert not np.array_equal(bf16.values, fp32.values)
    np.testing.assert_allclose(bf16.values.astype(float), fp32.values.astype(float), atol=0.1)


def test_two_at_once_are_refused(tmp_path, encoder, pictures):
    from avse.lock import LockError, OwnerLock

    grids(tmp_path, encoder, pictures)
    (folder,) = tmp_path.iterdir()
    lock = OwnerLock(folder)
    lock.acquire()
    assert len(grids(tmp_path, encoder, pictures).values) == 9  # complete: reading needs no lock
    (folder / "journal.txt").unlink()
    with pytest.raises(LockError, match="in use by"):
        grids(tmp_path, encoder, pictures)
    lock.release()


KILLED = """
import sys, time
from pathlib import Path
from avse.config import ImageEncoderConfig
from avse.encoders import build_image_encoder
from avse.features import FeatureCache

encoder = build_image_encoder(ImageEncoderConfig(source=sys.argv[1]))
encoder.register_forward_pre_hook(lambda module, inputs: time.sleep(0.02))
paths = sorted(Path(sys.argv[2]).glob("*.png"))
print("ready", flush=True)
FeatureCache(sys.argv[3]).grids(encoder, paths, [p.name for p in paths], batch_size=2, progress=False)
"""


@pytest.mark.slow
def test_killed_runs_never_leave_a_wrong_row(tmp_path, tiny_vit_folder, encoder):
    random = np.random.default_rng(1)
    (tmp_path / "p").mkdir()
    for number in range(60):
        Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "p" / f"{number:02}.png")
    paths = sorted((tmp_path / "p").glob("*.png"))
    paths[31].write_bytes(b"no picture")
    whole = grids(tmp_path / "whole", encoder, paths, batch_size=2)

    def kept():
        return sum(path.stat().st_size for path in (tmp_path / "cut").rglob("journal.txt"))

    for delay in (0.1, 0.15, 0.05):
        process = warm.Run(KILLED, tiny_vit_folder, tmp_path / "p", tmp_path / "cut")
        process.wait_for("ready\n")
        before = kept()
        while kept() == before and process.poll() is None:
            time.sleep(0.002)
        time.sleep(delay)
        process.kill()
        process.communicate()
    seen = passes(encoder)
    again = grids(tmp_path / "cut", encoder, paths, batch_size=2)
    assert 0 < sum(seen) < 59  # some were left, and some were there
    assert np.array_equal(again.values, whole.values) and again.skipped == whole.skipped
    assert again.kept.tolist() == [i for i in range(60) if i != 31]


TEXTS = ["a dog", "two red cat on the beach", "a dog", "", "a bird", "the man stands near a yellow boat"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_text_tokens_equal_the_encoder(tiny_bert_folder, dtype):
    encoder = build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder), max_length=8))
    seen: list[int] = []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    cached = text_tokens(encoder, TEXTS, batch_size=2, dtype=dtype, progress=False)
    assert sum(seen) == 5  # each distinct text once
    assert cached.values.shape == (4 + 8 + 2 + 4 + 8, 32) and cached.values.dtype == dtype
    assert cached.truncated.tolist() == [False, False, False, False, False, True]
    rows = [5, 0, 3, 2]
    tokens, mask = cached.batch(rows)
    own = encoder.tokenize([TEXTS[row] for row in rows])
    with torch.no_grad():
        expected = encoder(own.input_ids, own.attention_mask)
    assert torch.equal(mask, own.attention_mask) and tokens.dtype == torch.float32
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float16 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(tokens, expected * own.attention_mask[..., None], **tolerance)


def test_no_texts_are_refused(tiny_bert_folder):
    with pytest.raises(FeatureError, match="no texts"):
        text_tokens(build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder))), [])


def test_text_features_that_are_not_fixed_are_refused(tiny_bert_folder):
    def encoder(**settings):
        return build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder), **settings))

    with pytest.raises(FeatureError, match="frozen encoder.*tiny-bert"):
        text_tokens(encoder(frozen=False), TEXTS)
    with pytest.raises(FeatureError, match="tiny-bert.*word_augment exclude each other"):
        text_tokens(encoder(), TEXTS, word_augment=True)
    with pytest.raises(FeatureError, match="bigru.*is trained"):
        text_tokens(build_text_encoder(TextEncoderConfig(source="bigru", vectors=None, hidden=8), TEXTS), TEXTS)
