"""avse.images: every kind of picture, good and bad, against pixel values computed by hand."""

from __future__ import annotations

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avse.images import ImageError, PixelSpec, check_image, list_images, read_image, to_pixels

GOLDEN = Path(__file__).parent / "golden" / "preprocess.npz"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(source, **options):
    image = read_image(source, **options)
    assert image.mode == "RGB"
    return np.asarray(image)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def blank_png(width, height):
    """A one-bit PNG written by hand: many pixels in few bytes."""
    row, packer = bytes(1 + (width + 7) // 8), zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_rgb_comes_back_as_it_is_from_path_bytes_image_and_array(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = encoded(Image.fromarray(array))
    (tmp_path / "a.png").write_bytes(data)
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.fromarray(array), array):
        assert np.array_equal(pixels(source), array)


def test_rgba_is_composed_on_white():
    image = Image.new("RGBA", (2, 1))
    image.putpixel((0, 0), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 100, 51))  # a fifth: 0.8 * 255 = 204 for red and green, 204 + 20 for blue
    assert pixels(encoded(image)).tolist() == [[[255, 0, 0], [204, 204, 224]]]


def test_grey_with_alpha_palette_with_transparency_and_colour_key():
    grey = Image.new("LA", (2, 1))
    grey.putpixel((0, 0), (10, 255))
    grey.putpixel((1, 0), (10, 0))
    assert pixels(encoded(grey)).tolist() == [[[10] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 50, 60, 70])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette, transparency=0)).tolist() == [[[255] * 3, [50, 60, 70]]]
    assert pixels(encoded(palette)).tolist() == [[[9, 8, 7], [50, 60, 70]]]
    keyed = Image.new("RGB", (2, 1), (1, 2, 3))
    keyed.putpixel((1, 0), (4, 5, 6))
    assert pixels(encoded(keyed, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]


def test_sixteen_bit_grey_is_scaled_not_cut():
    deep = Image.fromarray(np.array([[0, 257 * 100, 65535, 32768]], np.uint16))
    assert pixels(encoded(deep))[..., 0].tolist() == [[0, 100, 255, 128]]
    assert pixels(encoded(deep, "TIFF"))[..., 1].tolist() == [[0, 100, 255, 128]]


def test_sixteen_bit_rgb_png_written_by_hand():
    row = b"\0" + struct.pack(">3H", 0xFFFF, 0x8000, 0x0100)
    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    assert pixels(data).tolist() == [[[255, 128, 1]]]


def test_float_and_32_bit_pictures_have_a_known_range_or_are_refused():
    assert pixels(encoded(Image.fromarray(np.array([[0.0, 0.2, 1.0]], np.float32)), "TIFF"))[..., 0].tolist() == [
        [0, 51, 255]
    ]
    with pytest.raises(ImageError, match="values from 0 to 7 where 0 to 1 are understood"):
        read_image(encoded(Image.fromarray(np.array([[0.0, 7.0]], np.float32)), "TIFF"))
    assert pixels(Image.fromarray(np.array([[0, 65535]], np.int32)))[..., 2].tolist() == [[0, 255]]
    with pytest.raises(ImageError, match="values from -1 to 70000"):
        read_image(Image.fromarray(np.array([[-1, 70000]], np.int32)))


def test_cmyk_grey_and_one_bit():
    cmyk = Image.new("CMYK", (2, 1), (0, 255, 255, 0))  # no cyan: red
    cmyk.putpixel((1, 0), (0, 0, 0, 255))
    assert pixels(encoded(cmyk, "TIFF")).tolist() == [[[255, 0, 0], [0, 0, 0]]]
    jpeg = pixels(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)).astype(int)
    assert np.abs(jpeg - [255, 0, 0]).max() <= 3
    assert pixels(encoded(Image.new("L", (1, 1), 77))).tolist() == [[[77] * 3]]
    assert pixels(encoded(Image.new("1", (1, 1), 1))).tolist() == [[[255] * 3]]


@pytest.mark.parametrize(
    ("orientation", "expected"), [(3, [[4, 3], [2, 1]]), (6, [[3, 1], [4, 2]]), (8, [[2, 4], [1, 3]])]
)
def test_exif_orientation_is_applied(orientation, expected):
    image = Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(encoded(image, exif=exif))[..., 0].tolist() == expected


def test_a_damaged_exif_block_does_not_cost_the_picture():
    data = encoded(Image.new("RGB", (8, 8), (10, 20, 30)), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff broken")
    assert np.abs(pixels(data).astype(int) - [10, 20, 30]).max() <= 2


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert pixels(data).tolist() == [[[255, 0, 0]] * 2] * 2


def test_a_given_image_is_left_alone():
    image = Image.new("RGB", (2, 2), (1, 2, 3))
    read_image(image).putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_truncated_files(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    (tmp_path / "cut.bin").write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"cut\.bin: ") as caught:
        read_image(tmp_path / "cut.bin")
    assert caught.value.name == str(tmp_path / "cut.bin")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_cut_of_a_small_file_is_a_picture_or_an_image_error():
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP"):
        data = encoded(Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), kind)
        for length in range(len(data)):
            try:
                assert read_image(data[:length]).size == (4, 4)
            except ImageError:
                pass


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_flipped_bytes_are_a_picture_or_an_image_error():
    random = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "TGA", "PPM", "ICO"):
        data = np.frombuffer(encoded(Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)), kind), np.uint8)
        for _ in range(400):
            damaged = data.copy()
            damaged[random.integers(0, len(data), 4)] = random.integers(0, 256, 4)
            try:
                assert read_image(damaged.tobytes(), max_pixels=10_000).mode == "RGB"
            except ImageError:
                pass


def test_bombs_are_refused_from_the_header(recwarn):
    bomb = blank_png(20_000, 20_000)
    assert len(bomb) < 64_000
    with pytest.raises(ImageError, match="too large: 400,000,000 pixels, more than the 100,000,000"):
        read_image(bomb)
    with pytest.raises(ImageError, match="120,000,000 pixels, more than the 100,000,000"):  # Pillow itself only warns
        read_image(blank_png(12_000, 10_000))
    with pytest.raises(ImageError, match="600 pixels, more than the 599"):
        read_image(blank_png(30, 20), max_pixels=599)
    assert read_image(blank_png(30, 20), max_pixels=600).size == (30, 20)
    assert not [warning for warning in recwarn if issubclass(warning.category, Image.DecompressionBombWarning)]


def test_a_large_image_already_open_is_refused_too(tmp_path):
    (tmp_path / "b.png").write_bytes(blank_png(30, 20))
    with Image.open(tmp_path / "b.png") as image, pytest.raises(ImageError, match=r"b\.png: too large: 600 pixels"):
        read_image(image, max_pixels=599)


def test_what_is_no_picture(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("a dog on a beach")
    (tmp_path / "drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "folder.jpg").mkdir()
    for name, reason in [
        ("empty.jpg", r"empty \(0 bytes\)"),
        ("text.jpg", "no picture of a known format"),
        ("drawing.eps", "no picture of a known format"),
        ("folder.jpg", "no file but a folder"),
        ("nowhere.jpg", "no such file"),
    ]:
        for look in (read_image, check_image):
            with pytest.raises(ImageError, match=f"{name}: {reason}"):
                look(tmp_path / name)
    with pytest.raises(ImageError, match="0 bytes: empty"):
        read_image(b"")


def test_check_image_reads_the_header_alone(tmp_path):
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    check_image(tmp_path / "cut.jpg")
    (tmp_path / "bomb.png").write_bytes(blank_png(20_000, 20_000))
    with pytest.raises(ImageError, match="400,000,000"):
        check_image(tmp_path / "bomb.png")


def test_arrays():
    assert pixels(np.array([[0, 200]], np.uint8)).tolist() == [[[0] * 3, [200] * 3]]
    assert pixels(np.array([[[0.0, 0.2, 1.0]]])).tolist() == [[[0, 51, 255]]]
    for array, reason in [
        (np.zeros((2, 2, 4), np.uint8), r"array \(2, 2, 4\) uint8: an array \(H, W, 3\)"),
        (np.zeros((3,), np.uint8), r"array \(3,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"array \(0, 4, 3\)"),
        (np.zeros((2, 2, 3), np.int64), "int64: uint8 or float"),
        (np.full((2, 2), 255.0), "values from 255 to 255"),
        (np.full((2, 2), np.nan), "values from nan"),
    ]:
        with pytest.raises(ImageError, match=reason):
            read_image(array)


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(ImageError("a.jpg", "truncated")))
    assert (str(error), error.name, error.reason) == ("a.jpg: truncated", "a.jpg", "truncated")


def test_draft_decodes_smaller_but_not_below():
    data = encoded(Image.new("RGB", (800, 400), (200, 100, 50)), "JPEG")
    assert read_image(data).size == (800, 400)
    small = read_image(data, draft=(64, 64))
    assert small.size == (200, 100)  # a quarter: an eighth would be 50 high
    assert np.abs(np.asarray(small).astype(int) - [200, 100, 50]).max() <= 2


def test_to_pixels_pillow_is_bicubic_on_bytes_then_normalised():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    spec = PixelSpec((32, 24), (0.5, 0.4, 0.3), (0.1, 0.2, 0.4))
    found = to_pixels(image, spec)
    assert found.dtype == np.float32 and found.shape == (3, 32, 24) and found.flags.c_contiguous
    resized = np.asarray(image.resize((24, 32), Image.Resampling.BICUBIC), np.float64)
    expected = ((resized / 255 - spec.mean) / spec.std).transpose(2, 0, 1)
    assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(ValueError, match="this one is L: pass it through read_image"):
        to_pixels(image.convert("L"), spec)


@pytest.mark.parametrize("name", ["rgb_120x170", "rgb_37x41_upscaled", "gray_90x60"])
def test_to_pixels_official_agrees_with_the_authors_code(name):
    golden = np.load(GOLDEN)
    expected = golden[f"{name}_eval"]
    found = to_pixels(read_image(golden[name]), PixelSpec(expected.shape[:2], *IMAGENET, method="official"))
    assert np.abs(found.transpose(1, 2, 0) - expected).max() < 1e-5


def test_to_pixels_official_by_hand():
    image = Image.fromarray(np.array([[[0] * 3, [100] * 3]], np.uint8))
    found = to_pixels(image, PixelSpec((1, 4), (0.0,) * 3, (1.0,) * 3, method="official"))
    assert np.allclose(found[0] * 255, [[0, 25, 75, 100]])  # centres at -0.25, 0.25, 0.75, 1.25 of the two pixels


def test_list_images(tmp_path):
    outside = tmp_path / "outside"
    folder = tmp_path / "photos"
    for name in ("b.JPG", "a/z.png", "a.jpeg", "notes.txt", ".hidden.jpg", ".cache/x.jpg", "a/sub/y.webp"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    outside.mkdir()
    (outside / "secret.jpg").touch()
    (folder / "out.jpg").symlink_to(outside / "secret.jpg")
    (folder / "linked").symlink_to(outside)
    (folder / "in.jpg").symlink_to(folder / "b.JPG")
    (folder / "broken.jpg").symlink_to(folder / "nowhere")
    (folder / "dir.jpg").mkdir()
    names = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    assert names == ["a.jpeg", "a/sub/y.webp", "a/z.png", "b.JPG", "in.jpg"]
    with pytest.raises(NotADirectoryError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match="is not a folder"):
        list_images(folder / "b.JPG")
