"""Pairs of datasets, torch and plain iterables as a folder: the same pixels and captions come out, by Pillow itself."""

import io
import json
import os

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from avse.data import from_pairs, load_dataset
from avse.images import read_image


def picture(seed, size=(12, 9)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


def encoded(image, kind="JPEG"):
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def pixels_and_captions(folder, split="all"):
    """What avse reads of a folder: for each picture its pixels, as Pillow decodes the copy, and its captions."""
    data = load_dataset(folder, split=split)
    found = {}
    for row, path in enumerate(data.image_paths):
        with Image.open(path) as image:
            found[np.asarray(image.convert("RGB")).tobytes()] = data.captions_of(row)
    return found


def raw(image):
    return np.asarray(image.convert("RGB")).tobytes()


def test_every_kind_of_picture_keeps_its_pixels(tmp_path):
    images = [picture(seed) for seed in range(7)]
    images[1].save(tmp_path / "b.png")
    jpeg = encoded(images[2])
    given = [
        images[0],
        tmp_path / "b.png",
        jpeg,
        np.asarray(images[3]),
        np.asarray(images[4]) / 255.0,
        torch.from_numpy(np.asarray(images[5]).copy()).permute(2, 0, 1),
        str(tmp_path / "b.png"),
        torch.from_numpy(np.asarray(images[6].convert("L")).copy())[None],
    ]
    counts = from_pairs(zip(given, [*"abcdef", ["b2", "b3"], "g"]), tmp_path / "out")
    with Image.open(io.BytesIO(jpeg)) as decoded:
        wanted = {raw(image): (text,) for image, text in zip(images[:6], "abcdef")}
        del wanted[raw(images[2])]
        wanted |= {raw(decoded): ("c",), raw(images[1]): ("b", "b2", "b3"), raw(images[6].convert("L")): ("g",)}
    assert pixels_and_captions(tmp_path / "out") == wanted
    assert (counts["pictures"], counts["captions"], counts["skipped"]) == (7, 9, [])
    assert jpeg in [path.read_bytes() for path in (tmp_path / "out" / "images").glob("*.jpg")]  # as it was, not again


def test_datasets_with_splits_are_copied_undecoded(tmp_path):
    files = [encoded(picture(seed), "JPEG") for seed in range(4)]
    features = datasets.Features({"photo": datasets.Image(), "said": datasets.List(datasets.Value("string"))})
    rows = [{"photo": {"bytes": data, "path": None}, "said": [f"one {i}", f"two {i}"]} for i, data in enumerate(files)]
    parts = {
        "train": datasets.Dataset.from_list(rows[:2], features=features),
        "validation": datasets.Dataset.from_list(rows[2:3], features=features).with_format("torch"),
        "test": datasets.Dataset.from_list(rows[3:], features=features),
    }
    counts = from_pairs(datasets.DatasetDict(parts), tmp_path / "out", image="photo", text="said")
    assert counts["splits"] == {"train": 2, "val": 1, "test": 1} and counts["captions"] == 8
    data = load_dataset(tmp_path / "out", split="val")
    assert data.image_paths[0].read_bytes() == files[2] and data.captions == ("one 2", "two 2")
    streamed = parts["train"].to_iterable_dataset()
    from_pairs(streamed, tmp_path / "streamed", image="photo", text="said")
    copied = {path.read_bytes() for path in (tmp_path / "streamed" / "images").iterdir()}
    assert copied == set(files[:2])


def test_a_column_of_splits_and_one_of_ids(tmp_path):
    table = datasets.Dataset.from_list(
        [
            {"image": encoded(picture(0)), "caption": "a", "part": "train", "key": 7},
            {"image": encoded(picture(0), "PNG"), "caption": "b", "part": "train", "key": 7},
            {"image": encoded(picture(1)), "caption": "c", "part": "dev", "key": 8},
        ]
    )
    from_pairs(table, tmp_path / "out", split="part", image_id="key")
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [(line["captions"], line["split"], line["id"]) for line in lines] == [
        (["a", "b"], "train", "7"),
        (["c"], "val", "8"),
    ]


class Pairs(torch.utils.data.Dataset):
    """Map-style, and it opens its pictures by itself."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, row):
        return Image.open(self.paths[row]).convert("RGB"), [f"caption {row}"]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        for seed in range(3):
            yield {"image": picture(seed), "caption": f"caption {seed}", "other": seed}


def test_torch_datasets(tmp_path):
    for seed in range(3):
        picture(seed).save(tmp_path / f"{seed}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "1.png").read_bytes()[:100])
    paths = [tmp_path / "0.png", tmp_path / "broken.png", tmp_path / "gone.png", tmp_path / "1.png", tmp_path / "2.png"]
    counts = from_pairs(Pairs(paths), tmp_path / "map")
    assert [name for name, _ in counts["skipped"]] == ["row 1", "row 2"] and "gone.png" in counts["skipped"][1][1]
    wanted = {raw(picture(seed)): (f"caption {row}",) for seed, row in ((0, 0), (1, 3), (2, 4))}
    assert pixels_and_captions(tmp_path / "map") == wanted
    from_pairs({"train": Stream(), "val": torch.utils.data.Subset(Pairs(paths), [0])}, tmp_path / "stream")
    assert load_dataset(tmp_path / "stream", split="train").num_images == 2  # the third is in val, which measures
    assert load_dataset(tmp_path / "stream", split="val").captions == ("caption 0",)


def test_what_cannot_be_used_is_listed(tmp_path):
    rows = [
        {"image": picture(0), "caption": "a"},
        {"image": b"no picture", "caption": "b"},
        {"image": tmp_path / "gone.jpg", "caption": "c"},
        {"image": None, "caption": "d"},
        {"image": np.full((4, 4, 3), 2.5), "caption": "e"},
        {"image": picture(1), "caption": None},
        {"image": picture(0), "caption": [" ", "a2", "half \ud83d"]},
        {"image": picture(2), "caption": []},
        {"image": picture(3), "caption": float("nan")},
        {"image": "nul\0.jpg", "caption": "f"},
    ]
    counts = from_pairs(rows, tmp_path / "out")
    assert [name for name, _ in counts["skipped"]] == [f"row {row}" for row in (1, 2, 3, 4, 5, 6, 6, 7, 8, 9)]
    reasons = [reason for _, reason in counts["skipped"]]
    assert "No such file" in reasons[1] and "a NoneType" in reasons[2]
    assert [row for row, reason in enumerate(reasons) if reason == "empty caption"] == [4, 5, 7, 8]
    assert reasons[6] == r"half a character (a lone surrogate) in the caption: 'half \ud83d'"
    assert (counts["pictures"], counts["captions"]) == (1, 2)
    kept = json.loads((tmp_path / "out" / "dataset.json").read_text())["counts"]["skipped"]
    assert kept == [list(skip) for skip in counts["skipped"]]
    data = load_dataset(tmp_path / "out", split="all")
    assert data.captions == ("a", "a2") and not data.skipped
    assert len(list((tmp_path / "out" / "images").iterdir())) == 1


def test_a_path_that_is_no_regular_file_is_listed(tmp_path):
    """A device has no end; nothing of it is read."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    given = [(str(tmp_path / "a.png"), "a"), ("/dev/zero" if os.path.exists("/dev/zero") else str(tmp_path), "b")]
    counts = from_pairs([*given, (tmp_path, "c")], tmp_path / "out")
    assert counts["pictures"] == 1 and [name for name, _ in counts["skipped"]] == ["row 1", "row 2"]
    assert all("no regular file" in reason for _, reason in counts["skipped"])


def test_a_picture_in_two_splits_stays_in_the_one_that_measures(tmp_path):
    def rows(*seeds):
        return [(picture(seed), f"{seed}") for seed in seeds]

    parts = {"train": rows(0, 1, 2), "validation": rows(1, 3), "test": rows(2, 4, 2), "more": rows(4, 5)}
    counts = from_pairs(parts, tmp_path / "out")
    wanted = {"train": ["0"], "val": ["1", "3"], "test": ["2", "2", "4"], "more": ["5"]}
    found = {split: sorted(load_dataset(tmp_path / "out", split=split).captions) for split in wanted}
    assert found == wanted and load_dataset(tmp_path / "out", split="all").num_pairs == counts["captions"] == 7
    assert counts["splits"] == {"train": 1, "val": 2, "test": 2, "more": 1} and counts["pictures"] == 6
    assert [name for name, _ in counts["skipped"]] == ["train, row 1", "train, row 2", "more, row 0"]
    name = load_dataset(tmp_path / "out", split="test").image_ids[0]
    assert counts["skipped"][1][1] == f"in two splits: {name} stays in 'test' (test, row 0), not in 'train'"
    both = datasets.Dataset.from_list([{"image": encoded(picture(row)), "caption": "a"} for row in range(3)])
    with pytest.raises(ValueError, match=r"no usable pair in split 'train', 3 .*train, row 0: in two .*'test'"):
        from_pairs(datasets.DatasetDict(train=both, test=both), tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_a_missing_id_joins_nothing(tmp_path):
    missing = (None, float("nan"), np.float32("nan"))
    rows = [{"image": picture(row), "caption": f"{row}", "key": key} for row, key in enumerate((*missing, 7.0, 7.0))]
    counts = from_pairs([*rows, {**rows[0], "key": "\ud83d"}], tmp_path / "out", image_id="key")
    wanted = {raw(picture(row)): (f"{row}",) for row in range(3)} | {raw(picture(3)): ("3", "4")}
    assert pixels_and_captions(tmp_path / "out") == wanted
    assert [name for name, _ in counts["skipped"]] == ["row 5"]


def test_open_files_and_tensors_that_numpy_has_not(tmp_path):
    stream, cut, closed = io.BytesIO(), io.BytesIO(b"none"), io.BytesIO()
    picture(0).save(stream, "PNG")  # and it stands at its end
    picture(1).save(tmp_path / "b.png")
    closed.close()
    levels = torch.arange(0, 256, 2).reshape(8, 16)
    half = (levels / 256).to(torch.bfloat16)  # these bfloat16 holds exactly
    with (tmp_path / "b.png").open("rb") as file:
        given = [stream, file, half, cut, closed, io.StringIO("text")]
        counts = from_pairs(zip(given, "abcdef"), tmp_path / "out")
    grey = np.rint(levels.numpy() / 256 * 255).astype(np.uint8)
    wanted = {raw(picture(0)): ("a",), raw(picture(1)): ("b",), raw(Image.fromarray(grey)): ("c",)}
    assert pixels_and_captions(tmp_path / "out") == wanted
    assert [name for name, _ in counts["skipped"]] == ["row 3", "row 4", "row 5"]
    assert "closed file" in counts["skipped"][1][1] and 'open it with "rb"' in counts["skipped"][2][1]


def test_a_png_keeps_what_a_pillow_image_has_and_avse_sees_the_same(tmp_path):
    random = np.random.default_rng(0)
    deep = Image.fromarray(random.integers(0, 2**16, (12, 9), np.uint16))
    clear = picture(0).convert("RGBA")
    clear.putalpha(Image.fromarray(random.integers(0, 256, (12, 9), np.uint8)))
    keyed = picture(1).quantize(16)
    keyed.info["transparency"] = 3
    given = [deep, clear, keyed, clear.convert("LA"), picture(2).convert("1"), picture(3).convert("CMYK")]
    given.append(Image.fromarray(np.asarray(deep).astype(np.int32)[::-1].copy()))
    turned = picture(4)
    turned.getexif()[0x0112] = 6
    from_pairs(zip([*given, turned], "abcdefgh"), tmp_path / "out")
    data = load_dataset(tmp_path / "out", split="all")
    assert sorted(data.captions) == list("abcdefgh")
    copies = {data.captions_of(row)[0]: path for row, path in enumerate(data.image_paths)}
    for letter, image in zip("abcdefgh", [*given, picture(4).transpose(Image.Transpose.ROTATE_270)]):
        with Image.open(copies[letter]) as copy:
            if letter == "f":
                assert copy.mode == "RGB"  # PNG has no CMYK
            else:
                mode = "RGBA" if letter == "c" else image.mode if image.mode != "I" else None
                same = [np.asarray(each.convert(mode) if mode else each).astype(np.int64) for each in (copy, image)]
                assert np.array_equal(*same), letter
        assert np.array_equal(read_image(copies[letter]), read_image(image)), letter


@pytest.mark.parametrize(
    ("source", "named", "message"),
    [
        (
            [{"img": 1, "caption": "a"}],
            {},
            r"row 0: no column 'image'; there are \['img', 'caption'\]: say which by image=",
        ),
        ([{"image": 1, "caption": "a"}], {"split": "part"}, "no column 'part'.*say which by split="),
        ([{"image": picture(0), "caption": 3}], {}, "row 0: the caption must be a text or a list of texts, found 3"),
        ([(picture(0), "a", 3)], {}, "a pair .picture, caption. or a mapping.*not 3 values"),
        ([(picture(0), "a")], {"split": "part"}, "a pair .* or a mapping with"),
        (["abc"], {}, "not a str"),
        ([{"image": picture(0), "caption": "a", "part": None}], {"split": "part"}, "a split must have a name"),
        ([], {}, "no usable pair in the source, 0 pictures or captions"),
        ([(b"x", "a")], {}, "no usable pair in the source, 1 pictures or captions were left out; the first, row 0"),
        ([(picture(0), "")], {}, "no usable pair in the source, 1 .*the first, row 0: empty caption"),
        (
            {"train": [(picture(0), "a")], "val": [(picture(1), None)]},
            {},
            "no usable pair in split 'val', 1 .*val, row 0",
        ),
        ({"train": []}, {"split": "part"}, r"does not go with a mapping, whose keys \['train'\] are the splits"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(tmp_path, source, named, message):
    with pytest.raises(ValueError, match=message):
        from_pairs(source, tmp_path / "out", **named)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_replaced_only_when_told(tmp_path):
    from_pairs([(picture(0), "a")], tmp_path / "out")
    with pytest.raises(FileExistsError, match="force=True"):
        from_pairs([(picture(1), "b")], tmp_path / "out")
    from_pairs([(picture(1), "b")], tmp_path / "out", force=True)
    assert load_dataset(tmp_path / "out", split="all").captions == ("b",)


def test_a_model_trains_and_is_measured_on_them(tmp_path, tiny_vit_folder, tiny_bert_folder):
    from avse import AVSE, Trainer, evaluate
    from avse.config import ModelConfig, TrainConfig

    colours = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
    rows = [
        (Image.new("RGB", (16, 16 + i), colour), f"a {name} ball") for i in range(3) for name, colour in colours.items()
    ]
    from_pairs({"train": rows[:8], "validation": rows[8:]}, tmp_path / "out")
    sources = {"image_encoder": {"source": str(tiny_vit_folder)}, "text_encoder": {"source": str(tiny_bert_folder)}}
    model = AVSE(ModelConfig(embed_dim=16, block_width=8, **sources))
    before = model.fingerprint
    train, val = load_dataset(tmp_path / "out", split="train"), load_dataset(tmp_path / "out", split="val")
    trainer = Trainer(model, TrainConfig(epochs=1, batch_size=4), cache=tmp_path / "cache", progress=False)
    trainer.fit(train, val, out=tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["pieces"][0]["to_step"] == 2 and model.fingerprint != before
    report = evaluate(model, val, bootstrap=0)
    scores = model.similarity(model.encode_images(list(val.image_paths)), model.encode_texts(list(val.captions)))
    firsts = [int(np.argmax(scores[:, text])) == image for text, image in enumerate(val.text_to_image)]
    assert report.t2i.r1 == 100 * np.mean(firsts)
