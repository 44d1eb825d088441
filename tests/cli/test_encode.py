"""`avse encode`: the files hold what the model says, picture by picture, and an index takes them.

Only two tests let processes read pictures, which costs more than all else here.
"""

import os

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from avse import AVSE, Index, load_dataset
from avse.export.embeddings import read_embeddings


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tiny_config):
    return AVSE(tiny_config).save_pretrained(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures in two folders, one broken and one that is none; more than a batch."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(11):
        path = folder / ("a" if number % 2 else "b ü") / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), np.uint8)).save(path)
    (folder / "a" / "05.png").write_bytes((folder / "a" / "05.png").read_bytes()[:300])
    (folder / "none.jpg").write_bytes(b"")
    return folder


def test_pictures_in_their_order_with_what_could_not_be_read_go_into_an_index(avse, model_folder, photos, tmp_path):
    out = tmp_path / "p.npz"
    said = avse("encode", model_folder, photos, "--out", out, "--batch-size", 3)
    assert said.code == 0
    assert f"{out}: 10 images, blocks (10, 4, 8), 2 skipped" in said.out and "skipped a/05.png: " in said.out
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png") if path.name != "05.png")
    model = AVSE.from_pretrained(model_folder)
    found = read_embeddings(out)
    assert found.ids == names
    for name, blocks in zip(names, found.blocks):
        assert np.abs(model.encode_images([photos / name])[0] - blocks).max() < 1e-6
    assert found.facts["fingerprint"] == model.fingerprint and found.facts["side"] == "images"
    assert [(said["path"], said["width"], said["height"]) for said in found.payloads] == [(n, 50, 40) for n in names]
    with np.load(out) as made:  # plain numpy, without pickle
        data, bounds = made["ids"].tobytes(), made["id_offsets"]
        assert [data[start:end].decode() for start, end in zip(bounds, bounds[1:])] == names
        assert made["fingerprint"] == model.fingerprint and np.array_equal(made["blocks"], found.blocks)
    with Index.create(tmp_path / "photos.avse", model_folder, source=photos) as index:
        made = read_embeddings(out, index)
        index.add_embeddings(made.ids, made.blocks, made.payloads)
        hits = index.search(image=photos / "a" / "03.png", k=2)
        assert hits[0].id == "a/03.png" and hits[0].score == pytest.approx(1)
        assert index.picture(hits[0]) == photos.resolve() / "a" / "03.png"


def test_single_pictures_keep_the_names_they_were_given(avse, model_folder, photos, tmp_path):
    odd = tmp_path / os.fsdecode(b"caf\xe9.png")  # as a disk of another system names it
    odd.write_bytes((photos / "a" / "03.png").read_bytes())
    given = [photos / "a" / "03.png", odd, photos / "a" / "01.png", photos / "b ü"]
    out = tmp_path / "p.parquet"
    said = avse("encode", model_folder, *given, "--out", out, "--json")
    names = [*map(str, given[:3:2]), *(str(photos / "b ü" / f"{number:02d}.png") for number in range(0, 11, 2))]
    assert said.code == 0 and read_embeddings(out).ids == names and said.json[0]["shape"] == [8, 4, 8]
    assert said.json[0]["skipped"] == [
        {"name": f"{tmp_path}/caf\\udce9.png", "reason": "the name is not valid unicode"}
    ]
    table = pyarrow.parquet.read_table(out)
    assert table["width"].to_pylist() == [50] * 8 and table["year"].null_count == 8


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_name_that_is_not_utf8_is_skipped_at_the_start(avse, model_folder, photos, tmp_path, suffix):
    odd = tmp_path / "in" / os.fsdecode(b"caf\xe9.png")
    odd.parent.mkdir()
    odd.write_bytes((photos / "a" / "03.png").read_bytes())
    said = avse("encode", model_folder, odd.parent, "--out", tmp_path / f"p{suffix}")
    assert said.code == 1 and not (tmp_path / f"p{suffix}").exists()
    assert "1 inputs were skipped; the first, caf\\udce9.png: the name is not valid unicode" in said.err


def test_sentences_of_a_file_have_a_row_a_line(avse, model_folder, tmp_path):
    lines = ["a red star", "", "a blue ring\r", " a red star ", "a red star (line 6)", "a red star", "a blue ring"]
    (tmp_path / "lines.txt").write_bytes("\n".join(lines).encode() + b"\n")
    said = avse("encode", model_folder, "--texts", tmp_path / "lines.txt", "--out", tmp_path / "t.npz")
    assert said.code == 0 and "6 texts, blocks (6, 2, 8), 1 skipped" in said.out and "skipped line 2: empty" in said.out
    found, model = read_embeddings(tmp_path / "t.npz"), AVSE.from_pretrained(model_folder)
    texts = [line.strip() for line in lines if line]
    assert found.payloads == [{"text": text, "line": line} for text, line in zip(texts, (1, 3, 4, 5, 6, 7))]
    assert np.abs(found.blocks - model.encode_texts(texts)).max() < 1e-6
    named = ["a red star", "a blue ring", "a red star (line 4)", "a red star (line 6)"]
    assert found.ids == [*named, "a red star (line 6) (line 6)", "a blue ring (line 7)"]
    with Index.create(tmp_path / "t.avse", model_folder, side="texts", store="memory") as index:
        index.add_embeddings(*read_embeddings(tmp_path / "t.npz", index)[:3])
        assert len(index) == 6


def test_captions_of_a_data_set(avse, model_folder, scenes, tmp_path):
    out = tmp_path / "captions.parquet"
    assert avse("encode", model_folder, "--texts", scenes, "--split", "test", "--out", out).code == 0
    test, table = load_dataset(scenes, split="test"), pyarrow.parquet.read_table(out)
    assert table["text"].to_pylist() == list(test.captions)
    assert table["image"].to_pylist() == [test.image_ids[image] for image in test.text_to_image]
    assert table["id"].to_pylist()[:2] == [f"{test.image_ids[0]}#0", f"{test.image_ids[0]}#1"]


def test_misuse_and_failures(avse, model_folder, photos, tmp_path):
    model, out = model_folder, tmp_path / "p.npz"
    assert avse("encode", model, "--out", out).code == 2
    assert avse("encode", model, photos, "--texts", "x.txt", "--out", out).code == 2
    assert avse("encode", model, photos, "--split", "test", "--out", out).code == 2
    said = avse("encode", model, photos, "--out", tmp_path / "p.csv")
    assert said.code == 1 and "as .npz or .parquet" in said.err
    said = avse("encode", model, tmp_path, "--out", out)
    assert said.code == 1 and "no pictures in" in said.err
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"kept")
    said = avse("encode", model, photos, "--out", out)
    assert said.code == 1 and "--force" in said.err and out.read_bytes() == b"kept"
    (tmp_path / "lines.txt").write_text("a dog")
    assert avse("encode", model, "--texts", tmp_path / "lines.txt", "--out", out, "--force").code == 0
    assert read_embeddings(out).ids == ["a dog"]
