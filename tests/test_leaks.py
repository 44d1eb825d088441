"""avse.leaks: twins of every kind are found, different and flat pictures are not, and the cache may be killed."""

from __future__ import annotations

import io
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from avse import leaks as module
from avse.data import FeatureRows, PairDataset
from avse.leaks import NEAR, Leak, describe, drop, find_leaks


def scene(seed, size=(240, 180)):
    """Smooth random fields with some shapes on them: no two seeds look alike."""
    random = np.random.default_rng(seed)
    field = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(field)
    for _ in range(12):
        x, y, w, h = (random.random(4) * np.array([*size, 60, 60])).tolist()
        draw.ellipse((x, y, x + w, y + h), fill=tuple(random.integers(0, 256, 3).tolist()))
    return field


def icon(seed, size=128):
    """A few thin lines on white."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), "white")
    points = (random.random((5, 2)) * size).round().tolist()
    ImageDraw.Draw(image).line([tuple(point) for point in points], fill="black", width=3)
    return image


def dataset(paths, split="train", **fields):
    return PairDataset(
        name="made",
        split=split,
        root=Path(),
        image_ids=tuple(path.name for path in paths),
        image_paths=tuple(paths),
        captions=tuple(f"caption of {path.name}" for path in paths),
        text_to_image=np.arange(len(paths)),
        skipped=(),
        records=({},) * len(paths),
        **fields,
    )


def saved(folder, images, **options):
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


def find(train, *args, **others):
    return find_leaks(train, others, *args, progress=False)


def half(image):
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)


def cut(image, share):
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


@pytest.fixture
def train(tmp_path):
    return dataset(saved(tmp_path / "train", {f"{i}.jpg": scene(i) for i in range(24)}, quality=95))


def test_twins_are_found_by_kind(train, tmp_path):
    """Everything in val but the last two comes from a training picture, each in another way."""
    sources = [Image.open(path).convert("RGB") for path in train.image_paths]
    made = {
        "3": (sources[3], {"format": "PNG"}),
        "4": (sources[4], {"format": "JPEG", "quality": 40}),
        "5": (half(sources[5]), {"format": "PNG"}),
        "6": (cut(sources[6], 0.01), {"format": "PNG"}),
        "7": (sources[7].crop((0, 3, 236, 180)), {"format": "PNG"}),
        "8": (ImageEnhance.Brightness(sources[8]).enhance(1.15), {"format": "PNG"}),
        "9": (half(ImageEnhance.Contrast(sources[9]).enhance(0.8)), {"format": "JPEG", "quality": 40}),
        "new1": (scene(901), {"format": "PNG"}),
        "new2": (scene(902), {"format": "JPEG"}),
    }
    (tmp_path / "val").mkdir()
    shutil.copy(train.image_paths[2], tmp_path / "val" / "2")
    for name, (image, options) in made.items():
        image.save(tmp_path / "val" / name, **options)
    val = dataset([tmp_path / "val" / name for name in ("2", *made)], "val")
    found = find(train, val=val)
    assert [(leak.image_id, leak.twin_id, leak.split) for leak in found] == [
        (f"{i}.jpg", str(i), "val") for i in range(2, 10)
    ]
    assert [leak.kind for leak in found] == ["same file", "same pixels", *["near-identical"] * 6]
    assert found[0].distance == found[1].distance == 0
    assert all(0 <= leak.distance <= NEAR for leak in found)


def test_one_leak_a_split_the_nearest_twin(train, tmp_path):
    image = Image.open(train.image_paths[0]).convert("RGB")
    val = saved(tmp_path / "val", {"cut.png": cut(image, 0.01), "half.png": half(image), "pixels.png": image})
    test = saved(tmp_path / "test", {"cut.png": cut(image, 0.01)})
    again = dataset(train.image_paths[:1], "testall")
    found = find(train, val=dataset(val, "val"), test=dataset(test, "test"), testall=again)
    assert [(leak.split, leak.twin_id, leak.kind) for leak in found] == [
        ("val", "pixels.png", "same pixels"),
        ("test", "cut.png", "near-identical"),
        ("testall", "0.jpg", "same file"),
    ]
    assert find(train) == find(dataset([]), val=again) == find(train, val=dataset([], "val")) == ()


def test_different_flat_and_sparse_pictures_are_not_twins(tmp_path):
    """Plain colours, plain colours with noise, and icons on white: each only matches itself."""
    random = np.random.default_rng(0)
    noisy = [Image.fromarray(random.integers(200, 205, (64, 64, 3), dtype=np.uint8)) for _ in range(5)]
    plain = [Image.new("RGB", (64, 64), color) for color in ("white", "#fefefe", "black", "red", "#c80000")]
    kinds = [*(scene(i) for i in range(40)), *(icon(i) for i in range(40)), *noisy, *plain]
    one = saved(tmp_path / "one", {f"{i}.png": image for i, image in enumerate(kinds)})
    train = dataset([path for i, path in enumerate(one) if i % 2 == 0])
    assert find(train, val=dataset([path for i, path in enumerate(one) if i % 2], "val")) == ()
    copies = saved(tmp_path / "two", {f"{i}.jpg": image for i, image in enumerate(kinds[:80])}, quality=60)
    found = find(dataset(one), val=dataset(copies, "val"))
    assert all(Path(leak.image_id).stem == Path(leak.twin_id).stem for leak in found) and len(found) >= 78


def test_colors_tell_pictures_of_one_shape_apart(tmp_path):
    """Flags of three stripes whose greys are nearly equal."""

    def flag(*colors):
        image = Image.new("RGB", (90, 60))
        for i, color in enumerate(colors):
            image.paste(color, (30 * i, 0, 30 * i + 30, 60))
        return image

    one, two = flag((0, 85, 0), "white", "red"), flag((50, 50, 100), "white", (76, 76, 76))
    grey = [np.asarray(image.convert("L"), int) for image in (one, two)]
    assert np.abs(grey[0] - grey[1]).max() <= 8
    paths = saved(tmp_path, {"one.png": one, "two.png": two})
    assert find(dataset(paths[:1]), val=dataset(paths[1:], "val")) == ()


def test_distances_are_those_of_plain_loops():
    """The definition, place by place in float64; equal pictures are at 0 whatever their brightness."""
    random = np.random.default_rng(1)
    greys = np.stack([np.asarray(scene(i).convert("L").resize((32, 32))) for i in range(4)])
    records = np.zeros(5, module._RECORD)
    records["grey"] = greys = np.concatenate([greys, random.integers(0, 256, (1, 32, 32), dtype=np.uint8)])
    records["color"] = random.integers(100, 156, (5, 8, 8, 3))

    def standard(x):
        return (x - x.mean()) / max(x.std(), 1)

    def cuts(x):
        def side(first, last):
            return np.clip((first + (np.arange(32) + 0.5) / 32 * (last - first)) * 32 - 0.5, 0, 31)

        ends = [(0, 1), (0, 0.98), (0.02, 1), (0.01, 0.99)]
        for rows, columns in itertools.product(ends, repeat=2):
            down = np.stack([np.interp(side(*rows), np.arange(32), x[:, j]) for j in range(32)], 1)
            yield standard(np.stack([np.interp(side(*columns), np.arange(32), down[i]) for i in range(32)]))

    def tint(record):
        color = record["color"].astype(np.float64)
        away = color - color.mean(2)[..., None]
        return (away - away.mean((0, 1))) / max(record["grey"].std(), 1)

    def naive(i, j):
        a, b = (records["grey"][k].astype(np.float64) for k in (i, j))
        tints = ((tint(records[i]) - tint(records[j])) ** 2).mean(2)
        plain_a, plain_b, worst = standard(a), standard(b), 0.0
        pairs = [*((c, plain_b) for c in cuts(a)), *((c, plain_a) for c in cuts(b))]
        for y, x in itertools.product(range(0, 32, 4), repeat=2):
            place = slice(y, y + 4), slice(x, x + 4)
            spread = (plain_a[place].var() + plain_b[place].var()) / 2
            error = min(((c[place] - other[place]) ** 2).mean() for c, other in pairs)
            worst = max(worst, (error + tints[y // 4, x // 4]) / (spread + 0.15))
        return 100 * worst

    pairs = [(0, 1), (1, 2), (3, 4), (2, 2)]
    measured = module._distances(records[[a for a, _ in pairs]], records[[b for _, b in pairs]])
    expected = [naive(*pair) for pair in pairs]
    assert np.abs(measured - expected).max() <= 0.51 and measured[3] == 0 and measured[:3].min() > NEAR
    brighter = records.copy()
    for name in ("grey", "color"):
        brighter[name] = records[name] // 2 + 100
    assert module._distances(records[:4], brighter[:4]).max() <= 1


def test_candidates_are_those_of_plain_loops(monkeypatch):
    random = np.random.default_rng(2)
    records = np.zeros(130, module._RECORD)
    records["color"] = random.integers(0, 256, (130, 8, 8, 3))
    records["grey"] = random.integers(0, 256, (130, 32, 32))
    records["color"][100:] = np.clip(
        records["color"][:30].astype(int) + random.integers(-30, 31, (30, 8, 8, 3)), 0, 255
    )
    records["color"][60:64] = records["color"][0]  # more equal ones than are kept of one picture
    records["grey"][:3] = 99  # flat: never a candidate
    one, two = records[:60], records[60:]
    expected = {i: [] for i in range(60)}
    for i, j in itertools.product(range(60), range(70)):
        a, b = (x["color"].reshape(64, 3).astype(np.float64) for x in (one[i], two[j]))
        a, b = a - a.mean(0), b - b.mean(0)
        if i >= 3 and (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()) >= 0.92:
            expected[i].append(j)
    for chunk in (7, 512):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        monkeypatch.setattr(module, "_PAIRS", chunk)
        got = {i: [] for i in range(60)}
        for a, b in module._candidates(one, two):
            assert len(a) == len(b) <= chunk
            for i, j in zip(a.tolist(), b.tolist()):
                got[i].append(j)
        assert {i: sorted(js) for i, js in got.items()} == expected
        many = module._candidates(records[60:61], records[60:64])
        assert sum(len(a) for a, _ in many) == 4


def test_unreadable_pictures_are_ignored(train, tmp_path):
    broken = tmp_path / "val" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_bytes(train.image_paths[1].read_bytes()[:3000])
    val = dataset([broken, tmp_path / "val" / "missing.jpg", tmp_path / "val", train.image_paths[0]], "val")
    assert [leak.twin_id for leak in find(train, val=val)] == ["0.jpg"]


def test_the_cache_is_used_until_a_file_changes(train, tmp_path):
    """A picture replaced behind an unchanged size and time is not read again; with another time it is."""
    cache = tmp_path / "cache"
    plain = [tmp_path / "val" / "0.bmp"]
    saved(plain[0].parent, {"0.bmp": scene(0)})
    val, facts = dataset(plain, "val"), plain[0].stat()
    first = find_leaks(train, {"val": val}, cache=cache, progress=False)
    assert [leak.image_id for leak in first] == ["0.jpg"]
    before = (cache / "leaks.npz").read_bytes()
    scene(950).save(plain[0])
    os.utime(plain[0], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert find_leaks(train, {"val": val}, cache=cache, progress=False) == first
    assert (cache / "leaks.npz").read_bytes() == before and [p.name for p in cache.iterdir()] == ["leaks.npz"]
    os.utime(plain[0], ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
    assert find_leaks(train, {"val": val}, cache=cache, progress=False) == ()
    records = np.load(cache / "leaks.npz")
    assert len(records[records.files[0]]) == 25  # the picture's record was replaced


@pytest.mark.parametrize("damage", ["cut", "flipped", "garbage", "empty", "another array", "another version"])
def test_a_damaged_cache_is_made_anew(train, tmp_path, damage):
    cache = tmp_path / "cache"
    val = dataset(train.image_paths[4:6], "val")
    first = find_leaks(train, {"val": val}, cache=cache, progress=False)
    store = cache / "leaks.npz"
    whole, stream = store.read_bytes(), io.BytesIO()
    np.savez(stream, **{module._NAME if damage == "another array" else "old": np.arange(3)})
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    content = {"cut": whole[:-100], "flipped": bytes(flipped), "garbage": b"no archive", "empty": b""}
    store.write_bytes(content.get(damage, stream.getvalue()))
    assert find_leaks(train, {"val": val}, cache=cache, progress=False) == first
    assert store.read_bytes() == whole


def test_a_kill_leaves_a_cache_that_is_whole(train, tmp_path):
    """Killed while it is written again and again; what was kept is used, and the answer is the same."""
    cache = tmp_path / "cache"
    expected = find(train, val=dataset(train.image_paths[:3], "val"))
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); from test_leaks import dataset, module\n"
        "module._SAVED = 1\n"
        "paths = sorted(pathlib.Path(sys.argv[2]).iterdir())\n"
        "module.find_leaks(dataset(paths), {'val': dataset(paths[:3], 'val')}, cache=pathlib.Path(sys.argv[3]))"
    )
    folders = [str(Path(__file__).parent), str(train.image_paths[0].parent), str(cache)]
    run = subprocess.Popen([sys.executable, "-c", code, *folders], stderr=subprocess.DEVNULL)
    limit = time.monotonic() + 30
    while not (cache / "leaks.npz").exists() and run.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)
    run.kill()
    run.wait()
    assert len(module._load(cache / "leaks.npz")) >= 1
    assert find_leaks(train, {"val": dataset(train.image_paths[:3], "val")}, cache=cache, progress=False) == expected
    assert len(module._load(cache / "leaks.npz")) == 24


def test_features_are_compared_row_by_row(tmp_path):
    random = np.random.default_rng(0)
    rows = random.standard_normal((6, 36, 16)).astype(np.float32)
    other = random.standard_normal((4, 36, 16)).astype(np.float32)
    other[2] = rows[5]
    other[3, 0] = rows[1, 0]  # the first region alone
    np.save(tmp_path / "train.npy", rows)
    np.save(tmp_path / "val.npy", other)
    np.save(tmp_path / "narrow.npy", other[:, :, :8])

    def part(name, split, chosen):
        data = dataset([Path(f"{split}{i}") for i in chosen], split)
        return module.PairDataset(
            **{**vars(data), "features": FeatureRows(tmp_path / f"{name}.npy", np.array(chosen, np.int64))}
        )

    train, val = part("train", "train", [5, 1, 0]), part("val", "val", [3, 2, 0])
    assert find(train, val=val) == (Leak("train5", "val2", "val", "same features", 0),)
    assert find(train, val=part("narrow", "val", [0, 1, 2])) == find(train, val=dataset([], "val")) == ()
    assert drop(train, find(train, val=val)).features.rows.tolist() == [1, 0]


def test_the_message_and_what_is_left(train):
    leaks = [Leak(f"{i}.jpg", f"{i}.png", "val", "near-identical", 7 + i) for i in range(3)]
    leaks += [Leak("3.jpg", "x.jpg", "test", "same file", 0), Leak("0.jpg", "y.jpg", "test", "same file", 0)]
    said = describe(leaks)
    assert said.startswith("4 training pictures stand in another split too: 3 in val (near-identical), 2 in test (same")
    assert "\n  0.jpg is 0.png of val (near-identical, distance 7)\n  1.jpg is" in said and "x.jpg" not in said
    assert "--set data.leaks=drop" in said and "data.leaks=ignore" in said and "\n  and 2 more\nfigures" in said
    assert describe(leaks[:1]).startswith("1 training picture stands in") and " more" not in describe(leaks[:1])
    assert describe(leaks, left_out=True).endswith("\nthey are left out of training")
    left = drop(train, leaks)
    assert left.image_ids == train.image_ids[4:] and left.captions == train.captions[4:]
    assert drop(train, ()).image_ids == train.image_ids
    with pytest.raises(ValueError, match="all 4 training pictures stand in another split.*data.leaks=ignore"):
        drop(train.subset(range(4)), leaks)


@pytest.mark.slow
def test_a_hundred_thousand_pictures_are_searched_in_seconds(tmp_path):
    random = np.random.default_rng(0)
    records = np.zeros(105_000, module._RECORD)
    records["color"] = random.integers(0, 256, (105_000, 8, 8, 3), dtype=np.uint8)
    records["grey"] = random.integers(0, 256, (105_000, 32, 32), dtype=np.uint8)
    records["color"][70_000] = records["color"][100_007]
    started = time.perf_counter()
    found = [(a.tolist(), b.tolist()) for a, b in module._candidates(records[:100_000], records[100_000:])]
    assert [pair for pair in found if pair[0]] == [([70_000], [7])]
    assert time.perf_counter() - started < 30  # 3 to 7 s on two cores
