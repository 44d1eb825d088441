"""avse.data.layouts: each layout of pictures found by its files, and every way in which its files can be wrong."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
from PIL import Image

from avse.data import load_dataset
from avse.data.layouts import find_layout


def test_karpathy_with_restval_in_train(karpathy):
    data = load_dataset(karpathy(), split="train")
    assert (data.name, data.root.name, data.num_images, data.num_pairs) == ("karpathy", "images", 3, 15)
    assert data.image_ids[0] == "val2014/COCO_val2014_000000000002.jpg"
    assert data.captions_of(0) == tuple(f"image 2 caption {k} ü" for k in range(5))
    assert data.records[0] == {
        "split": "train", "imgid": 2, "cocoid": 102, "merged_from": "restval", "caption_ids": [20, 21, 22, 23, 24],
    }  # fmt: skip
    assert "1 images of restval are part of train" in data.summary()
    test = load_dataset(data.root.parent / "dataset_coco.json", split="test")
    assert test.num_pairs == 6 and test.records[0]["caption_ids"] == [0, 1, 2, 3, 4, 5]
    five = test.first_captions(5)
    assert (
        five.num_pairs == 5 and five.records[0]["caption_ids"] == [0, 1, 2, 3, 4] and five.captions == test.captions[:5]
    )
    assert load_dataset(data.root.parent, split="all").num_images == 5
    with pytest.raises(ValueError, match=r"no split 'restval'; it has train \(3 images\)"):
        load_dataset(data.root.parent, split="restval")


@pytest.mark.parametrize("place", ["", "flickr30k-images", "flickr30k_images", "../coco-images", "elsewhere"])
def test_pictures_in_the_usual_places_or_in_root(karpathy, place, tmp_path):
    root = karpathy(pictures=place)
    data = load_dataset(root, root=root / place if place == "elsewhere" else None)
    assert (
        data.num_images == 1 and data.image_paths[0].resolve() == next((root / place).glob("val2014/*0.jpg")).resolve()
    )
    flat = tmp_path / "flat"  # all pictures in one folder: the name alone
    shutil.copytree(root / place / "val2014", flat)
    assert load_dataset(root, root=flat).image_ids == ("COCO_val2014_000000000000.jpg",)


def test_a_missing_picture_and_an_empty_caption_are_skips(karpathy):
    def change(said):
        said["images"][3]["sentences"][1]["raw"] = " "

    root = karpathy(change)
    (root / "images/train2014/COCO_train2014_000000000004.jpg").unlink()
    data = load_dataset(root, split="train")
    assert [(skip.name[-6:], skip.reason) for skip in data.skipped] == [
        ("03.jpg", "empty caption: images[3]"),
        ("04.jpg", "missing: no such file"),
    ]
    assert data.records[1]["caption_ids"] == [30, 32, 33, 34] and len(data.captions_of(1)) == 4
    shutil.rmtree(root / "images")
    with pytest.raises(ValueError, match=r"nothing usable in split 'val': 1 images.*looked for in .*1 missing"):
        load_dataset(root, split="val")


def images(change):
    def apply(said):
        change(said["images"])

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.pop("images"), "no 'images', which must be there"),
        (lambda said: said.update(images={}), "'images' must be a list, found {}"),
        (lambda said: said.update(images=[]), "no images in it"),
        (images(lambda i: i.append(3)), r"images\[5\]: an object is wanted, found a int"),
        (images(lambda i: i[1].pop("filename")), r"images\[1\]: no 'filename'.*found the keys \['cocoid', "),
        (images(lambda i: i[1].pop("split")), r"images\[1\]: no 'split'"),
        (images(lambda i: i[1].update(split="all")), r"images\[1\]: 'split' must be a name other than all"),
        (images(lambda i: i[1].update(filename="../a.jpg")), r"images\[1\]: the image .../a.jpg. leaves the folder"),
        (images(lambda i: i[1].update(filename="/a.jpg")), r"images\[1\]: the image ./a.jpg. leaves the folder"),
        (images(lambda i: i[1].update(filepath="../x")), r"images\[1\]: the image .../x/COCO.*leaves the folder"),
        (images(lambda i: i[1].update(filepath=3)), r"images\[1\]: 'filepath' must be a text, found 3"),
        (images(lambda i: i[1].update(cocoid="7")), r"images\[1\]: 'cocoid' must be a whole number, found \"7\""),
        (images(lambda i: i[1]["sentences"].pop()), r"images\[1\]: 'sentids' must be .* each of 4 sentences"),
        (images(lambda i: i[1].update(sentences="x")), r"images\[1\]: 'sentences' must be a list"),
        (images(lambda i: i[1]["sentences"][2].pop("raw")), r"images\[1\].sentences\[2\]: no 'raw'"),
        (images(lambda i: i[4].update(filename=i[3]["filename"])), r"images\[4\]: .* twice in 'train', first .*\[3\]"),
    ],
)  # fmt: skip
def test_wrong_lists_of_karpathy(karpathy, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(karpathy(change))
    assert "dataset_coco.json" in str(error.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b'{"images": [', "not JSON .*cut off"),
        (b"[]", "an object is wanted, found a list"),
        (b'{\n"a": "caf\xe9"}', r"dataset_x.json:2: not UTF-8 \(byte 0xe9\)"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_files_that_are_no_json(tmp_path, data, message):
    (tmp_path / "dataset_x.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_dataset(tmp_path)


def test_a_byte_order_mark_is_none_of_the_data(karpathy):
    file = karpathy() / "dataset_coco.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_dataset(file).num_images == 1


@pytest.mark.parametrize("once_a", ["image", "caption"])
@pytest.mark.parametrize("texts", ["", "precomp"])
def test_research(research, once_a, texts):
    root = research(once_a, texts)
    data = load_dataset(root, split="val")
    assert data.image_ids == ("1003.jpg", "1004.jpg") and data.root == root / "images"
    assert data.captions_of(1) == tuple(f"image 4 caption {k}" for k in range(5))
    assert data.records == ({"split": "val", "id": "3"}, {"split": "val", "id": "4"})
    assert load_dataset(root / "id_mapping.json", split="train").num_pairs == 15
    assert load_dataset(root, split="all").num_images == 7
    with pytest.raises(
        ValueError, match=r"no split 'dev'; it has train \(train_caps.txt\), val \(dev_caps.txt\).*mean 'val'"
    ):
        load_dataset(root, split="dev")


def test_research_lines_with_other_ends_and_blank_lines(research):
    root = research()
    caps = [f"Bär {k}\u2028x" for k in range(10)]
    caps[3] = ""
    (root / "test_caps.txt").write_bytes(("\ufeff" + "\r\n".join(caps) + "\r\n\r\n \n").encode())
    (root / "test_ids.txt").write_bytes(b"\xef\xbb\xbf5\r\n6\r\n\r\n")
    data = load_dataset(root)
    assert data.num_pairs == 9 and data.captions[0] == "Bär 0\u2028x" and len(data.captions_of(0)) == 4
    assert [(skip.name, skip.reason) for skip in data.skipped] == [("1005.jpg", "empty caption: test_caps.txt:4")]


def test_research_coco_names_and_any_number_of_captions(research):
    root = research()
    (root / "test_ids.txt").write_text("6\n6\n5\n")
    (root / "test_caps.txt").write_text("a\nb\nc\n")
    data = load_dataset(root)
    assert data.image_ids == ("1006.jpg", "1005.jpg") and data.captions_of(0) == ("a", "b")
    name = "COCO_val2014_000000000009.jpg"
    (root / "images/val2014").mkdir()
    shutil.copy(root / "images/1005.jpg", root / "images/val2014" / name)
    (root / "id_mapping.json").write_text(json.dumps({"6": "1006.jpg", "5": name}))
    assert load_dataset(root).image_ids == ("1006.jpg", f"val2014/{name}")


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("test_caps.txt", "one\n" * 9, r"test_caps.txt: 9 captions for 2 ids in test_ids.txt.*10 would be five"),
        ("test_caps.txt", "", "test_caps.txt: no captions in it"),
        ("test_caps.txt", "\n\n", "test_caps.txt: no captions in it"),
        ("test_ids.txt", "", "test_ids.txt: no ids in it"),
        ("test_ids.txt", "5\n\n6\n", "test_ids.txt:2: an image id is wanted, the line is empty"),
        ("test_ids.txt", "5\n7\n", r"test_ids.txt:2: the id .7. is none of the 7 ids of .*id_mapping.json"),
        ("test_ids.txt", "5\n5\n", r"test_ids.txt:2: the image '5' stands here and in line 1"),
        ("test_ids.txt", "5\n6\n" * 5, r"test_ids.txt:3: the image '5' stands here and in line 1"),
        ("test_ids.txt", b"5\n\xff6\n", r"test_ids.txt:2: not UTF-8"),
        ("test_caps.txt", b"a\nb\ncaf\xe9\n", r"test_caps.txt:3: not UTF-8 \(byte 0xe9\)"),
        ("id_mapping.json", "[]", "id_mapping.json: an object is wanted"),
        ("id_mapping.json", "{", "id_mapping.json: not JSON"),
        ("id_mapping.json", '{"5": "../a.jpg", "6": "b.jpg"}', "the id \"5\": the image .../a.jpg. leaves the folder"),
        ("id_mapping.json", '{"5": "C:\\\\a.jpg", "6": "b.jpg"}', "leaves the folder"),
        ("id_mapping.json", '{"5": ["a"], "6": "b.jpg"}', "the id \"5\": the image must be a path"),
        ("id_mapping.json", '{"5": "1005.jpg", "6": "1005.jpg"}', ":2: '1005.jpg' stands twice in 'test', first .*:1"),
        ("val_caps.txt", "a\n", "dev_caps.txt and val_caps.txt, both called val"),
    ],
)  # fmt: skip
def test_wrong_files_of_research(research, file, text, message):
    root = research()
    (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        load_dataset(root)


def test_missing_files_of_research(research):
    root = research()
    (root / "test_ids.txt").unlink()
    with pytest.raises(ValueError, match="test_caps.txt: no test_ids.txt beside it"):
        load_dataset(root)
    for file in root.glob("*.txt"):
        file.unlink()
    with pytest.raises(ValueError, match=r"no \{split\}_caps.txt beside it or in precomp/"):
        load_dataset(root)


def test_an_image_of_two_splits_measures(research):
    root = research()
    (root / "train_ids.txt").write_text("0\n1\n5\n")
    (root / "testall_ids.txt").write_text("5\n6\n3\n")
    (root / "testall_caps.txt").write_text("x\ny\nz\n")
    everything = load_dataset(root, split="all")
    splits = dict(zip(everything.image_ids, (record["split"] for record in everything.records)))
    assert splits == {
        "1000.jpg": "train", "1001.jpg": "train", "1003.jpg": "testall", "1004.jpg": "val",
        "1005.jpg": "testall", "1006.jpg": "testall",
    }  # fmt: skip
    assert sorted(skip.name for skip in everything.skipped) == ["1003.jpg", "1005.jpg"]


def test_coco_captions(coco):
    root = coco()
    data = load_dataset(root, split="val")
    assert data.image_ids == ("val2014/COCO_val2014_000000000010.jpg", "val2014/COCO_val2014_000000000011.jpg")
    assert data.captions == ("c1 of 10", "c0 of 10", "c1 of 11", "c0 of 11") and data.name == "mscoco"
    assert data.records[1] == {"split": "val", "cocoid": 11, "caption_ids": [111, 110]}
    assert load_dataset(root / "annotations", split="train").num_images == 3
    assert load_dataset(root / "annotations/captions_val2014.json", split="all").num_images == 5
    with pytest.raises(ValueError, match=r"no split 'test'; it has train, val, or all.*dataset_coco.json"):
        load_dataset(root)
    (root / "annotations/captions_val2017.json").write_text("{}")
    with pytest.raises(
        ValueError, match="holds annotations/captions_train2014.json and annotations/captions_val2017.json: name"
    ):
        load_dataset(root)
    assert load_dataset(root / "annotations/captions_val2014.json", split="val").num_images == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.pop("annotations"), "no 'annotations'"),
        (lambda said: said.update(images=[], annotations=[]), "no images in it"),
        (lambda said: said["images"][1].pop("id"), r"images\[1\]: no 'id'"),
        (lambda said: said["images"][1].update(id=True), r"images\[1\]: 'id' must be a whole number, found true"),
        (lambda said: said["images"][1].update(id=said["images"][0]["id"]), r"images\[1\]: the id 10 stands twice"),
        (lambda said: said["images"][1].update(file_name="../x.jpg"), r"images\[1\]: the image .../x.jpg. leaves"),
        (lambda said: said["images"][1].update(said["images"][0], id=11), r"images\[1\]: .* stands twice in 'val'"),
        (lambda said: said["annotations"][2].update(image_id=77), r"annotations\[2\]: image_id 77 is none of the 2"),
        (lambda said: said["annotations"][2].update(caption=None), r"annotations\[2\]: 'caption' must be .* null"),
    ],
)  # fmt: skip
def test_wrong_captions_of_coco(coco, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(coco(change), split="val")
    assert "captions_val2014.json" in str(error.value)


def test_known_names(karpathy, research, regions, tmp_path):
    with pytest.raises(FileNotFoundError, match="'coco' is the name of a known data set: give .* root="):
        load_dataset("coco")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder, where 'coco'"):
        load_dataset("coco", root=tmp_path / "nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"'flickr30k' was not found below .*dataset_flickr30k.json or id_mapping.json.*f30k"
    ):
        load_dataset("flickr30k", root=tmp_path)
    research()
    regions(folder="f30k/precomp")
    regions(folder="coco_precomp")
    data = load_dataset("flickr30k", root=tmp_path)
    assert (data.name, data.num_images) == ("flickr30k", 2)
    features = load_dataset("flickr30k-regions", root=tmp_path)
    assert features.name == "flickr30k-regions" and features.features.path.parent == tmp_path / "f30k/precomp"
    assert load_dataset("coco-regions", root=tmp_path).features.path.parent.name == "coco_precomp"
    karpathy().rename(tmp_path / "coco")
    (tmp_path / "coco" / "dataset_flickr8k.json").write_text("{}")
    assert load_dataset("coco", root=tmp_path).num_images == 1
    (tmp_path / "dataset_coco.json").write_text("{}")
    with pytest.raises(ValueError, match="several times: dataset_coco.json and coco/dataset_coco.json: name the one"):
        load_dataset("coco", root=tmp_path)


def test_coco_by_name_with_its_own_captions_alone(coco):
    root = coco().rename(coco().with_name("coco")).parent
    assert load_dataset("coco", root=root, split="val").num_images == 2
    with pytest.raises(ValueError, match="no split 'test'.*dataset_coco.json"):
        load_dataset("coco", root=root)


def test_a_folder_of_a_known_name(karpathy, tmp_path, monkeypatch):
    karpathy().rename(tmp_path / "coco")
    monkeypatch.chdir(tmp_path)
    assert load_dataset("coco").name == load_dataset("./coco").name == "coco"
    assert find_layout("coco").family == "coco" and find_layout("coco", tmp_path).claimed


def test_several_layouts_in_a_folder(karpathy):
    root = karpathy()
    (root / "captions.jsonl").write_text('{"image": "images/val2014/COCO_val2014_000000000000.jpg", "captions": ["x"]}')
    with pytest.raises(ValueError, match=r"holds dataset_coco.json and captions.jsonl: name the one to read"):
        load_dataset(root)
    assert load_dataset(root / "captions.jsonl", split="all").num_images == 1
    assert load_dataset(root / "dataset_coco.json").num_images == 1


def test_a_folder_of_no_layout_says_what_is_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither captions\.jsonl nor captions\.csv, nor .*dataset_\*.json, id_map"
    ):
        load_dataset(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"ends in .jsonl or .csv; other layouts are marked by dataset_\*.json"):
        load_dataset(tmp_path / "notes.txt")
    (tmp_path / "captions_odd.name.json").write_text("{}")
    with pytest.raises(FileNotFoundError):
        load_dataset(tmp_path)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_a_folder_of_pictures_may_be_a_link_and_a_picture_may_not_leave(karpathy, tmp_path):
    root = karpathy()
    (root / "images/val2014").rename(tmp_path / "big disk")
    (root / "images/val2014").symlink_to(tmp_path / "big disk")
    assert load_dataset(root).num_images == 1
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    picture = tmp_path / "big disk" / "COCO_val2014_000000000000.jpg"
    picture.unlink()
    picture.symlink_to(tmp_path / "secret.png")
    with pytest.raises(ValueError, match=r"images\[0\]: .* is a link that leaves"):
        load_dataset(root)
