"""avse.data.regions: features made beforehand, mapped and never loaded, and what can be wrong with their files."""

from __future__ import annotations

import numpy as np
import pytest

from avse.data import FeatureRows, load_dataset


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize(("dtype", "width"), [(np.float32, 2048), (np.float16, 2054)])
def test_features(regions, repeated, dtype, width):
    root = regions(repeated=repeated, dtype=dtype, width=width)
    data = load_dataset(root, split="val")
    step = 5 if repeated else 1
    assert (data.name, data.num_images, data.num_pairs) == ("f30k_precomp", 2, 10)
    assert data.image_ids == ("row-0", f"row-{step}") and data.image_paths == (root / "dev_ims.npy",) * 2
    assert data.captions_of(1) == tuple(f"dev b caption {k}" for k in range(5))
    opened = data.features.open()
    assert isinstance(opened, np.memmap) and opened.dtype == dtype and not opened.flags.writeable
    np.testing.assert_array_equal(opened[data.features.rows], np.load(root / "dev_ims.npy")[::step])
    part = data.subset([1])
    assert part.features.rows.tolist() == [step] and part.captions == data.captions_of(1)
    assert data.first_captions(2).features.rows.tolist() == [0, step]


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("once_a", ["image", "caption"])
def test_ids(regions, repeated, once_a):
    root = regions(repeated=repeated, ids=True)
    if once_a == "caption":
        (root / "test_ids.txt").write_text("4\n" * 5 + "5\n" * 5)
    data = load_dataset(root / "train_ims.npy")
    assert data.image_ids == ("4", "5") and data.records[0] == {"split": "test", "id": "4"}
    assert data.features.rows.tolist() == ([0, 5] if repeated else [0, 1])


def test_other_numbers_of_captions(regions):
    root = regions()
    (root / "test_caps.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert load_dataset(root).text_to_image.tolist() == [0, 0, 0, 1, 1, 1]
    (root / "test_caps.txt").write_text("a\nb\n")  # as many as rows: ids say that each row is an image
    (root / "test_ids.txt").write_text("x\ny\n")
    assert load_dataset(root).captions_of(1) == ("b",)


def test_empty_captions_are_skipped(regions):
    root = regions()
    caps = [f"c{k}" for k in range(10)]
    caps[0:5] = ["", " ", "", "\t", ""]
    (root / "test_caps.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(caps).encode() + b"\r\n\r\n")
    data = load_dataset(root)
    assert data.image_ids == ("row-1",) and data.num_pairs == 5 and data.features.rows.tolist() == [1]
    assert [skip.reason for skip in data.skipped][-2:] == ["empty caption: test_caps.txt:5", "no caption"]
    (root / "test_caps.txt").write_text("\n" * 9 + ".")
    assert load_dataset(root).num_pairs == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 36, 2048), np.float32), r"10 captions for 3 rows of features: .*15 would be five an image"),
        (np.zeros((0, 36, 2048), np.float32), r"found the shape \(0, 36, 2048\)"),
        (np.zeros((2, 0, 2048), np.float32), r"G not above W; found the shape \(2, 0, 2048\)"),
        (np.zeros((2, 2048, 36), np.float32), r"found the shape \(2, 2048, 36\)"),
        (
            np.zeros((2, 36 * 2048), np.float32),
            r"\(images, regions, width\) of float32 or float16 .* \(2, 73728\) float32",
        ),
        (np.zeros((2, 36, 2048), np.float64), r"float32 or float16 .* float64"),
        (np.zeros((2, 36, 2048), np.int32), r"float32 or float16 .* int32"),
        (np.array([{"a": 1}, None], dtype=object), "no array file that can be mapped"),
    ],
)
def test_wrong_arrays(regions, array, message):
    root = regions()
    np.save(root / "test_ims.npy", array)
    with pytest.raises(ValueError, match=message):
        load_dataset(root)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("<f4", (2**62, 4, 1)),
        ("<f4", (2**32, 2**32, 1)),
        ("<f4", (2, 2**64, 1)),
        ("<f4", (0, 2**62, 1)),
        ("<f4", (-2, 36, 2048)),
        ("<f4", (3, 10**9, 10**6)),
        ("|S0", (3, 4, 5)),
        ("<U0", (2**40, 2**40, 2**40)),
        ("|V0", (2**62, 2**62, 2**62)),
    ],
)
def test_headers_that_lie(regions, kind, shape):
    """numpy's own mapping of some of these divides by nothing, which ends the process."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    root = regions()
    (root / "test_ims.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(400))
    with pytest.raises(ValueError, match="test_ims.npy"):
        load_dataset(root)


def test_files_that_are_no_arrays(regions):
    root = regions()
    whole = (root / "test_ims.npy").read_bytes()
    unclosed = whole[:10] + b"{'descr': (\n" + whole[22:]
    for data in (b"", b"\x93NUMPY", b"no array", whole[:-1], whole[:60], unclosed):
        (root / "test_ims.npy").write_bytes(data)
        with pytest.raises(ValueError, match=r"test_ims.npy: no array file that can be mapped"):
            load_dataset(root)
    with open(root / "test_ims.npy", "wb") as stream:
        np.savez(stream, a=np.zeros(2))
    with pytest.raises(ValueError, match=r"test_ims.npy: no array file that can be mapped"):
        load_dataset(root)


def test_rows_that_should_be_repeated_and_are_not(regions):
    root = regions(repeated=True)
    array = np.load(root / "test_ims.npy")
    array[7, 0, 3] += 1
    np.save(root / "test_ims.npy", array)
    with pytest.raises(ValueError, match=r"test_ims.npy: row 7 differs from row 5, though .*as many rows as captions"):
        load_dataset(root)
    np.save(root / "test_ims.npy", array[:9])
    (root / "test_caps.txt").write_text("x\n" * 9)
    with pytest.raises(ValueError, match=r"9 rows and as many captions: .*in fives.*test_ids.txt"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("test_caps.txt", b"a\n" * 9, r"test_caps.txt: 9 captions for 2 rows of features"),
        ("test_caps.txt", b"", "test_caps.txt: no captions in it"),
        ("test_caps.txt", b"a\ncaf\xe9\n", r"test_caps.txt:2: not UTF-8 \(byte 0xe9\)"),
        ("test_ids.txt", b"4\n", r"test_ims.npy: 2 rows, but 1 images in test_ids.txt and 10 captions"),
        ("test_ids.txt", b"4\n5\n6\n", "test_caps.txt: 10 captions for 3 ids in test_ids.txt"),
        ("test_ids.txt", b"4\n4\n", "test_ids.txt:2: the image '4' stands here and in line 1"),
        ("val_ims.npy", b"", "dev_ims.npy and val_ims.npy, both called val"),
    ],
)
def test_wrong_texts(regions, file, data, message):
    root = regions()
    (root / file).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        load_dataset(root)


def test_splits(regions):
    root = regions()
    with pytest.raises(ValueError, match="each split has a file of features of its own: name one of train, val, test"):
        load_dataset(root, split="all")
    with pytest.raises(ValueError, match=r"no split 'dev'; it has .*val \(dev_ims.npy\).*did you mean 'val'"):
        load_dataset(root, split="dev")
    with pytest.raises(ValueError, match="root=.* has no use here"):
        load_dataset(root, root=root)
    (root / "test_caps.txt").unlink()
    with pytest.raises(ValueError, match=r"test_ims.npy: no test_caps.txt beside it"):
        load_dataset(root)


def test_one_row_an_image(regions):
    data = load_dataset(regions())
    with pytest.raises(ValueError, match="2 images, 1 rows of features"):
        type(data)(**{**vars(data), "features": FeatureRows(data.features.path, np.zeros(1, np.int64))})
