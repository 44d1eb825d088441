"""The face of the index: making, opening, models, pictures and texts."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from avse.index import Index, Skipped, StoreError


def test_nothing_is_replaced_without_force(tmp_path, encoder, store, unit):
    path = tmp_path / "i.avse"
    with Index.create(path, encoder, store=store) as index:
        index.add_embeddings(["a"], unit(1, 4, 8))
    with pytest.raises(FileExistsError, match="force"):
        Index.create(path, encoder)
    with Index.open(path) as index:
        assert len(index) == 1
    with Index.create(path, encoder, store=store, force=True) as index:
        assert len(index) == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["i.avse"]  # no temporary is left
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for taken in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(FileExistsError, match="no index"):
            Index.create(taken, encoder, force=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_index_made_meanwhile_is_not_replaced(tmp_path, encoder, store, unit, monkeypatch):
    def slow(folder):  # another process is faster while this one loads its model
        with Index.create(tmp_path / "i", encoder, store=store) as other:
            other.add_embeddings(["a"], unit(1, 4, 8))
        return encoder

    monkeypatch.setattr("avse.index.index.load_encoder", slow)
    with pytest.raises(FileExistsError, match="an index already"):
        Index.create(tmp_path / "i", "model", store=store)
    with Index.open(tmp_path / "i") as index:
        assert len(index) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["i"]


def test_unknown_stores_and_sides(tmp_path, encoder):
    for arguments in ({"store": "cloud"}, {"side": "sounds"}):
        with pytest.raises(ValueError, match="stores are embedded, memory, server, sides images and texts"):
            Index.create(tmp_path / "i", encoder, **arguments)
    with pytest.raises(ValueError, match="memory store"):
        Index.create(tmp_path / "i", encoder, side="texts")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "damaged"),
        (b"\xff\xfe", "damaged"),
        (b"[]", "damaged"),
        (b"{}", "damaged"),
        ({"format": "other"}, "damaged.*'other'"),
        ({"version": 99}, "version 99, this avse reads 2"),
        ({"store": "cloud"}, "damaged"),
        ({"side": "sounds"}, "damaged"),
        ({"block_width": 0}, "damaged"),
        ({"num_image_blocks": "4"}, "damaged"),
        ({"fingerprint": None}, "damaged"),
    ],
)
def test_a_folder_that_is_no_sound_index(tmp_path, encoder, content, message):
    Index.create(tmp_path / "i", encoder, store="memory").close()
    manifest = tmp_path / "i" / "index.json"
    if isinstance(content, dict):
        content = json.dumps({**json.loads(manifest.read_text()), **content}).encode()
    manifest.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        Index.open(tmp_path / "i")
    manifest.unlink()
    with pytest.raises(StoreError, match="is not an index"):
        Index.open(tmp_path / "i")
    with pytest.raises(FileNotFoundError, match="no such index"):
        Index.open(tmp_path / "nowhere")


def test_another_model_is_refused_with_both_fingerprints(tmp_path, encoder, other_encoder, store):
    Index.create(tmp_path / "i", encoder, store=store).close()
    with pytest.raises(ValueError, match=r"colours-0.*colours-1.*--model.*--force"):
        Index.open(tmp_path / "i", other_encoder)
    Index.open(tmp_path / "i", encoder).close()


def test_the_model_is_found_again_when_asked_and_moves_along(tmp_path, saved_model, store, pictures):
    with Index.create(tmp_path / "runs" / "i.avse", saved_model, store=store) as index:
        index.add_images(pictures, progress=False)
        before = index.search("a dog")
    assert json.loads((tmp_path / "runs" / "i.avse" / "index.json").read_text())["model"] == "../model"
    shutil.move(tmp_path / "runs", tmp_path / "moved")
    with Index.open(tmp_path / "moved" / "i.avse") as index:
        assert index.search("a dog") == before
        assert index.encoder.folder == (tmp_path / "moved" / "model")
    shutil.move(tmp_path / "moved" / "model", tmp_path / "elsewhere")
    with Index.open(tmp_path / "moved" / "i.avse") as index:
        with pytest.raises(ValueError, match=r"no model folder .*model= / --model.*only embedding= works"):
            index.search("a dog")
        assert len(index.search(embedding=np.eye(8, dtype=np.float32)[:2])) == 6
    with Index.open(tmp_path / "moved" / "i.avse", model=tmp_path / "elsewhere") as index:
        assert index.search("a dog") == before


def test_another_model_in_the_remembered_folder_is_refused(tmp_path, saved_model, other_encoder, monkeypatch):
    Index.create(tmp_path / "i", saved_model, store="memory").close()
    monkeypatch.setattr(sys.modules["avse.start"], "open_model", lambda path: other_encoder)
    with Index.open(tmp_path / "i") as index, pytest.raises(ValueError, match="colours-0.*colours-1"):
        index.search("a dog")


def test_a_model_that_was_never_saved(tmp_path, encoder):
    Index.create(tmp_path / "i", encoder, store="memory").close()
    with Index.open(tmp_path / "i") as index, pytest.raises(ValueError, match="never saved.*model="):
        index.search("a dog")
    with pytest.raises(ValueError, match="no such model folder"):
        Index.create(tmp_path / "j", tmp_path / "nowhere")


def test_pictures_come_in_and_broken_ones_are_listed(index, encoder, pictures):
    report = index.add_images(pictures, batch_size=4, progress=False)
    assert report.added == 6 == len(index) and encoder.largest_batch == 4
    assert [skip.name for skip in report.skipped] == ["2019/broken.jpg", "empty.png"]
    assert "empty" in report.skipped[1].reason and report.skipped[0].reason
    (hit,) = index.search("x", where='folder = 2019 and name = "d ü.png"')
    size = (pictures / "2019" / "d ü.png").stat().st_size
    names = {"path": "2019/d ü.png", "paths": ["2019/d ü.png"], "name": "d ü.png", "folder": "2019"}
    assert hit.id == "2019/d ü.png"
    assert hit.payload == {**names, **hit.payload, "width": 23, "height": 10, "bytes": size}
    assert hit.payload.keys() - names.keys() == {"width", "height", "bytes", "sha256", "modified"}
    assert index.picture(hit) == pictures / "2019" / "d ü.png" and index.source == pictures


def test_only_new_pictures_are_encoded(index, encoder, pictures):
    index.add_images(pictures, progress=False)
    Image.new("RGB", (9, 9), "red").save(pictures / "new.png")
    encoder.largest_batch = 0
    report = index.add_images(pictures, progress=False)
    assert (report.added, report.known, len(index)) == (1, 6, 7)
    assert [skip.name for skip in report.skipped] == ["2019/broken.jpg", "empty.png"]
    assert encoder.largest_batch == 1  # the two that could not be read are remembered
    assert index.add_images(pictures, retry=True, progress=False).known == 7
    assert encoder.largest_batch == 2


def test_files_one_by_one_and_folders_that_do_not_fit(index, pictures, tmp_path):
    report = index.add_images([pictures / "2019" / "c.png", pictures / "a.png"], progress=False)
    assert report.added == 2 and index.known(["a.png", "2019/c.png"]) == {"a.png", "2019/c.png"}
    assert index.add_images([str(pictures / "2020" / "e.png")], progress=False).added == 1
    assert index.add_images(pictures / "2019", progress=False).added == 1 and index.known(["2019/d ü.png"])
    with pytest.raises(ValueError, match="does not lie in"):
        index.add_images([tmp_path / "other.png"], progress=False)
    with pytest.raises(ValueError, match="holds the pictures of .*another index"):
        index.add_images(tmp_path, progress=False)
    assert index.add_images([pictures / "gone.png"], progress=False).skipped == (Skipped("gone.png", "no such file"),)
    (tmp_path / "link").symlink_to(pictures)
    assert index.add_images([tmp_path / "link" / "b.jpg"], progress=False).added == 1 == len(index.known(["b.jpg"]))
    assert index.add_images([], progress=False).added == 0


def test_a_payload_does_not_lead_out_of_the_folder(index, pictures, unit):
    assert index.source is None
    index.add_images([pictures / "a.png"], progress=False)
    for path in ("../secret.png", "/etc/passwd", 3):
        index.add_embeddings(["odd"], unit(1, 4, 8), [{"path": path}])
        (hit,) = [hit for hit in index.search("a") if hit.id == "odd"]
        assert index.picture(hit) is None


@pytest.mark.skipif(sys.platform != "linux", reason="file names of arbitrary bytes")
def test_a_name_that_is_no_unicode_is_listed(index, pictures):
    shutil.copy(pictures / "a.png", os.fsencode(pictures) + b"/bad\xff.png")
    report = index.add_images(pictures, progress=False)
    assert report.added == 6 and report.skipped[1] == Skipped("bad\\udcff.png", "the name is not valid unicode")


def test_rows_are_those_of_encode_images_beside_a_broken_picture_too(index, encoder, pictures):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    with Image.open(pictures / "2020" / "e.png") as image:
        image.convert("RGB").save(pictures / "2020" / "turned.jpg", exif=exif)
        Image.new("RGB", (5, 7)).save(pictures / "odd.jpg", exif=exif.tobytes().replace(b"MM", b"XX"))
    assert index.add_images(pictures, progress=False).added == 8
    for name in ("b.jpg", "2019/c.png", "2020/turned.jpg"):
        hit = index.search(image=pictures / name, k=1)[0]
        assert hit.id == name and hit.score == pytest.approx(1, abs=1e-6)
    assert (hit.payload["width"], hit.payload["height"]) == (10, 24)


def test_texts_answer_pictures(tmp_path, encoder, pictures, score):
    lines = ["a red dog", "", "a blue boat", "a red dog", "  the green sea  "]
    with Index.create(tmp_path / "t", encoder, store="memory", side="texts") as index:
        report = index.add_texts(lines, progress=False)
        assert report.added == 3 == len(index) and report.skipped == (Skipped("line 2", "empty"),)
        hits = index.search(image=pictures / "a.png")
        (picture,) = encoder.encode_images([pictures / "a.png"])
        texts = ["a red dog", "a blue boat", "the green sea"]
        expected = sorted(((score(picture, encoder.encode_texts([text])[0]), text) for text in texts), reverse=True)
        assert [hit.id for hit in hits] == [text for _, text in expected]
        assert np.allclose([hit.score for hit in hits], [value for value, _ in expected], atol=1e-5)
        assert [hit.id for hit in index.search(embedding=picture, where="line > 1")] == [
            text for _, text in expected if text != "a red dog"
        ]
        assert hits[0].payload.keys() == {"text", "line"}
        report = index.add_texts(["a blue boat", "more", "a blue boat"], progress=False)
        assert (report.added, report.changed, report.removed, len(index)) == (1, 1, 0, 4)
        assert index.get(["a blue boat"])[2] == [{"text": "a blue boat", "line": 1}]
        report = index.add_texts(["more", "a blue boat"], prune=True, progress=False)
        assert (report.added, report.changed, report.removed) == (0, 2, 2) and index.known(texts) == {"a blue boat"}
        with pytest.raises(ValueError, match="no sentences"):
            index.add_texts(["", " "], prune=True, progress=False)
        with pytest.raises(ValueError, match="answers pictures"):
            index.search("a dog")
        with pytest.raises(ValueError, match="an index of texts"):
            index.add_images(pictures)
    with Index.create(tmp_path / "p", encoder, store="memory") as index, pytest.raises(ValueError, match="of images"):
        index.add_texts(["a"])


def test_opening_an_index_loads_neither_torch_nor_the_engine():
    script = "import sys, avse.index; print([m for m in ('torch', 'transformers', 'qdrant_edge') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
