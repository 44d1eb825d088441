"""`avse encode`: the files hold what the model says, picture by picture, and an index takes them."""

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from avse import AVSE, Index, load_dataset
from avse.export.embeddings import read_embeddings


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


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_pictures_in_their_order_with_what_could_not_be_read(avse, run_folder, photos, tmp_path, suffix):
    out = tmp_path / f"p{suffix}"
    said = avse("encode", run_folder / "model", photos, "--out", out, "--batch-size", 3)
    assert said.code == 0
    assert f"{out}: 10 images, blocks (10, 4, 8), 2 skipped" in said.out and "skipped a/05.png: " in said.out
    names = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png") if path.name != "05.png")
    model = AVSE.from_pretrained(run_folder / "model")
    found = read_embeddings(out)
    assert found.ids == names
    for name, blocks in zip(names, found.blocks):
        assert np.abs(model.encode_images([photos / name])[0] - blocks).max() < 1e-6
    assert found.facts["fingerprint"] == model.fingerprint and found.facts["side"] == "images"
    assert [(said["path"], said["width"], said["height"]) for said in found.payloads] == [(n, 50, 40) for n in names]
    if suffix == ".npz":
        with np.load(out) as archive:  # plain numpy, without pickle
            assert archive["ids"].tolist() == names and np.array_equal(archive["blocks"], found.blocks)
            assert archive["fingerprint"] == model.fingerprint
    else:
        table = pyarrow.parquet.read_table(out)
        assert table["width"].to_pylist() == [50] * 10 and table["year"].null_count == 10


def test_three_lines_put_a_file_into_an_index(avse, run_folder, photos, tmp_path):
    avse("encode", run_folder / "model", photos, "--out", tmp_path / "photos.npz")
    with Index.create(tmp_path / "photos.avse", run_folder / "model", source=photos) as index:
        made = read_embeddings(tmp_path / "photos.npz", index)
        index.add_embeddings(made.ids, made.blocks, made.payloads)
        hits = index.search(image=photos / "a" / "03.png", k=2)
        assert hits[0].id == "a/03.png" and hits[0].score == pytest.approx(1)
        assert index.picture(hits[0]) == photos.resolve() / "a" / "03.png"


def test_single_pictures_keep_the_names_they_were_given(avse, run_folder, photos, tmp_path):
    given = [photos / "a" / "03.png", photos / "a" / "01.png", photos / "b ü"]
    said = avse("encode", run_folder / "model", *given, "--out", tmp_path / "p.npz", "--json")
    names = [*map(str, given[:2]), *(str(photos / "b ü" / f"{number:02d}.png") for number in range(0, 11, 2))]
    assert read_embeddings(tmp_path / "p.npz").ids == names
    assert said.json[0]["shape"] == [8, 4, 8] and said.json[0]["skipped"] == []


def test_sentences_of_a_file_and_of_a_data_set(avse, run_folder, scenes, tmp_path):
    (tmp_path / "lines.txt").write_text("a red star\n\na blue ring\r\n a red star \n", "utf-8")
    said = avse("encode", run_folder / "model", "--texts", tmp_path / "lines.txt", "--out", tmp_path / "t.npz")
    assert said.code == 0 and "2 texts, blocks (2, 2, 8), 1 skipped" in said.out and "skipped line 2: empty" in said.out
    found, model = read_embeddings(tmp_path / "t.npz"), AVSE.from_pretrained(run_folder / "model")
    assert found.ids == ["a red star", "a blue ring"] and found.payloads[1] == {"text": "a blue ring", "line": 3}
    assert np.abs(found.blocks - model.encode_texts(["a red star", "a blue ring"])).max() < 1e-6
    with Index.create(tmp_path / "t.avse", run_folder / "model", side="texts", store="memory") as index:
        index.add_embeddings(*read_embeddings(tmp_path / "t.npz", index)[:3])
        assert len(index) == 2
    out = tmp_path / "captions.parquet"
    assert avse("encode", run_folder / "model", "--texts", scenes, "--split", "test", "--out", out).code == 0
    test, table = load_dataset(scenes, split="test"), pyarrow.parquet.read_table(out)
    assert table["text"].to_pylist() == list(test.captions)
    assert table["image"].to_pylist() == [test.image_ids[image] for image in test.text_to_image]
    assert table["id"].to_pylist()[:2] == [f"{test.image_ids[0]}#0", f"{test.image_ids[0]}#1"]


def test_misuse_and_failures(avse, run_folder, photos, tmp_path):
    model, out = run_folder / "model", tmp_path / "p.npz"
    assert avse("encode", model, "--out", out).code == 2
    assert avse("encode", model, photos, "--texts", "x.txt", "--out", out).code == 2
    assert avse("encode", model, photos, "--split", "test", "--out", out).code == 2
    said = avse("encode", model, photos, "--out", tmp_path / "p.csv")
    assert said.code == 1 and "as .npz or .parquet" in said.err
    said = avse("encode", model, tmp_path, "--out", out)
    assert said.code == 1 and "no pictures in" in said.err
    said = avse("encode", model, photos / "none.jpg", "--out", out)
    assert said.code == 1 and "nothing could be embedded, 1 inputs were skipped; the first" in said.err
    assert list(tmp_path.iterdir()) == []
    out.write_bytes(b"kept")
    said = avse("encode", model, photos, "--out", out)
    assert said.code == 1 and "--force" in said.err and out.read_bytes() == b"kept"
    assert avse("encode", model, photos / "a", "--out", out, "--force").code == 0
    assert len(read_embeddings(out).ids) == 4
