"""The one safe way to read a picture and to turn it into the pixels an encoder wants.

Knows Pillow and numpy, no torch and no encoder. Colour profiles are not applied. Formats that start other programs
(EPS) or hold no grid of pixels (SVG) are refused.
"""

from __future__ import annotations

import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
FORMATS = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "PPM", "TGA", "ICO", "JPEG2000", "AVIF", "HEIF")
SUFFIXES = frozenset(".jpg .jpeg .png .gif .bmp .webp .tif .tiff .ppm .pgm .jp2 .avif".split())

_OPENING = threading.Lock()
"""Held while a header is read: the filter of warnings belongs to all threads."""

ImageSource = str | Path | bytes | Image.Image | NDArray[Any]


class ImageError(ValueError):
    """A picture cannot be used; ``name`` says which one, ``reason`` why."""

    def __init__(self, name: str, reason: str) -> None:
        """Keep both; they are also the arguments, so that the error survives pickling."""
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        """Say ``name: reason``."""
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True)
class PixelSpec:
    """How an encoder wants its pixels.

    Attributes:
        size: (height, width) in pixels; pictures are squashed to it, whatever their shape, or cut to it.
        mean: One number a channel (R, G, B), in units of pixels in [0, 1].
        std: The same; pixels become (pixel - mean) / std.
        method: ``pillow`` resizes with antialiased bicubic on bytes; ``official`` as the AVSE authors do: bilinear with
            half-pixel centres, no antialiasing, no rounding to bytes.
        resample: The filter of ``pillow``.
        shorter_side: ``pillow`` keeps a picture's shape, makes its shorter side so many pixels and cuts ``size`` out of
            the middle (CLIP's way; black where the picture is smaller than ``size``); None squashes.
        reduced: A large JPEG may be decoded at a reduced size, never below twice the size needed (not ``official``).
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    method: Literal["pillow", "official"] = "pillow"
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    shorter_side: int | None = None
    reduced: bool = True

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON can say them; resample and shorter_side only where they are not the default.

        ``reduced`` is left out: it belongs to the kind of encoder.
        """
        default = {"resample": "bicubic", "shorter_side": None, "reduced": self.reduced}
        return {name: value for name, value in asdict(self).items() if (name, value) not in default.items()}

    @property
    def draft(self) -> tuple[int, int] | None:
        """(height, width) in pixels that is enough of a file, None where it is to be decoded in full."""
        side = max(*self.size, self.shorter_side or 0)
        return (2 * side, 2 * side) if self.reduced and self.method == "pillow" else None


def read_image(
    source: ImageSource, *, max_pixels: int = MAX_PIXELS, draft: tuple[int, int] | None = None
) -> Image.Image:
    """Return the picture as upright 8-bit RGB, transparency composed on white; the source itself is left alone.

    Animations give their first frame, 16-bit pictures are scaled to 8 bits, CMYK and grey ones converted. Float
    pictures and arrays hold values in [0, 1], integer pictures of 32 bits values of 16.

    Args:
        source: A path, the bytes of a file, a Pillow image, or an array (H, W, 3) or (H, W), uint8 or float in [0, 1].
        max_pixels: Width times height above this is refused from the header, before decoding.
        draft: (height, width) that is enough: a JPEG may be decoded smaller, but not below it (a third of the time);
            an image that `open_image` gave may then change its size.

    Raises:
        ImageError: No such file, no picture, truncated, too large, or an array of another kind; it names the source.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"image {source.mode} {source.size}"
        if draft is not None:
            source.draft(None, (max(draft), max(draft)))
        return _to_rgb(source, name, max_pixels)
    opened, name = _open(source, max_pixels)
    with opened:
        if draft is not None:
            opened.draft(None, (max(draft), max(draft)))
        return _to_rgb(opened, name, max_pixels)


def load_pixels(source: ImageSource, spec: PixelSpec) -> NDArray[np.float32]:
    """Read one picture into the pixels (3, H, W) float32 that ``spec`` wants; files alone are decoded at reduced size.

    Raises:
        ImageError: As `read_image`.
    """
    return to_pixels(read_image(source, draft=None if isinstance(source, Image.Image) else spec.draft), spec)


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and read its header alone; close it, or use it as a context manager.

    Raises:
        ImageError: As `read_image` does for what the header can tell.
    """
    return _open(Path(path), max_pixels)[0]


def check_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> None:
    """Read the header of a picture and no more: a truncated file may pass.

    Raises:
        ImageError: As `read_image` does for what the header can tell.
    """
    _open(Path(path), max_pixels)[0].close()


def to_pixels(image: Image.Image, spec: PixelSpec) -> NDArray[np.float32]:
    """Return the pixels of an RGB image as ``spec`` wants them: float32 (3, H, W), (pixel - mean) / std.

    Raises:
        ValueError: The image is not RGB: pass it through `read_image`.
    """
    if image.mode != "RGB":
        raise ValueError(f"an RGB image is wanted, this one is {image.mode}: pass it through read_image")
    height, width = spec.size
    if spec.method == "official":
        pixels = _bilinear(np.asarray(image, np.float32), height, width)
    else:
        pixels = np.asarray(_resized(image, spec), np.float32)
    scaled = np.ascontiguousarray(pixels.transpose(2, 0, 1))  # channels apart, each step runs over whole planes
    scaled /= np.float32(255)
    scaled -= np.array(spec.mean, np.float32)[:, None, None]
    scaled /= np.array(spec.std, np.float32)[:, None, None]
    return scaled


def shrink(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """Return an RGB image in the size that ``spec`` wants before it cuts: `to_pixels` makes the same bits of it.

    For ``official``, which mixes neighbours without rounding, that is the image itself.

    Raises:
        ImageError: So long and thin that it would be larger than `MAX_PIXELS`.
    """
    wanted, _ = _placed(image.size, spec)
    if spec.method == "official" or image.size == wanted:
        return image
    if wanted[0] * wanted[1] > MAX_PIXELS:
        raise ImageError(f"image {image.size}", _too_large(wanted[0] * wanted[1], MAX_PIXELS))
    return image.resize(wanted, Image.Resampling[spec.resample.upper()])


def seen_frame(size: tuple[int, int], spec: PixelSpec) -> tuple[float, float, float, float]:
    """Return what an encoder sees of an upright picture of (width, height): x0, y0, x1, y1 as shares of its sides.

    A share below 0 or above 1 is the black around a picture that is smaller than what is cut.
    """
    (width, height), (left, top, right, bottom) = _placed(size, spec)
    return left / width, top / height, right / width, bottom / height


def list_images(folder: str | Path) -> list[Path]:
    """Return what `walk_images` finds below ``folder``; a folder in it that cannot be listed is an error.

    Raises:
        NotADirectoryError: ``folder`` is not a folder.
        OSError: A folder cannot be listed.
    """
    return list(walk_images(folder))


def walk_images(folder: str | Path, on_error: Callable[[OSError], None] | None = None) -> Iterator[Path]:
    """Yield the pictures below ``folder`` by their suffixes, in the order of their paths below it.

    Hidden files and folders are ignored, and so is what is no file. Symbolic links to folders are not followed, those
    to files only where they stay inside ``folder``. Memory grows with the largest single folder alone.

    Args:
        folder: Where to look.
        on_error: Told of a folder below that cannot be listed, in its place in the order; None raises the error.

    Raises:
        NotADirectoryError: ``folder`` is not a folder.
        OSError: ``folder`` cannot be listed, or, without ``on_error``, one below it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder" if folder.exists() else f"{folder}: no such folder")
    os.listdir(folder)
    yield from _walk(folder, folder.resolve(), on_error)


def _walk(folder: Path, root: Path, on_error: Callable[[OSError], None] | None) -> Iterator[Path]:
    try:
        with os.scandir(folder) as scan:
            entries = [entry for entry in scan if not entry.name.startswith(".")]
    except OSError as error:
        if on_error is None:
            raise
        return on_error(error)
    names = {entry.name + "/" * entry.is_dir(follow_symlinks=False): entry for entry in entries}
    for name in sorted(names):
        path = folder / names[name].name
        if name.endswith("/"):
            yield from _walk(path, root, on_error)
        elif path.suffix.lower() in SUFFIXES and _is_file_inside(names[name], root):
            yield path


def _is_file_inside(entry: os.DirEntry[str], root: Path) -> bool:
    try:
        return entry.is_file() and (not entry.is_symlink() or Path(entry.path).resolve().is_relative_to(root))
    except (OSError, RuntimeError):  # a link that leads to itself
        return False


def _open(source: str | Path | bytes, max_pixels: int) -> tuple[Image.Image, str]:
    if isinstance(source, bytes):
        name, size = f"{len(source)} bytes", len(source)
    else:
        source, name = Path(source), str(source)
        try:
            if not source.is_file():
                raise ImageError(name, "no file but a folder or device" if source.exists() else "no such file")
            size = source.stat().st_size
        except OSError as error:  # a folder on the way is closed to us
            raise ImageError(name, _unreadable(error)) from error
    if size == 0:
        raise ImageError(name, "empty (0 bytes)")
    Image.init()
    try:
        known = [kind for kind in FORMATS if kind in Image.OPEN]
        with _OPENING, warnings.catch_warnings():  # our own cap speaks, by an error that names it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known)
    except UnidentifiedImageError as error:
        raise ImageError(name, "no picture of a known format") from error
    except Image.DecompressionBombError as error:
        pixels = int((re.findall(r"\d+", str(error)) or ["0"])[0])
        raise ImageError(name, _too_large(pixels, max_pixels)) from error
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(name, _unreadable(error)) from error
    try:
        _check_size(image, name, max_pixels)
    except ImageError:
        image.close()
        raise
    return image, name


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    pixels = image.width * image.height
    if pixels > max_pixels or pixels == 0:
        raise ImageError(name, _too_large(pixels, max_pixels) if pixels else f"no pixels: size {image.size}")


def _to_rgb(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check_size(image, name, max_pixels)
    try:
        image.load()
        upright = turned(image)
        if upright.mode in ("I", "F") or upright.mode.startswith("I;16"):
            return _from_deep(upright, name)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, upright).convert("RGB")
        return upright.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # decoders raise anything on damaged files
        raise ImageError(name, _unreadable(error)) from error


def _unreadable(error: Exception) -> str:
    """Say why without the path, which an error of the system has in it: the picture has its name."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"unreadable: {type(error).__name__}, {said}"


def turned(image: Image.Image) -> Image.Image:
    """Return a copy that is upright by its EXIF block; its mode and values stay."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image.copy()


def _from_deep(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high, top = float(values.min()), float(values.max()), 1.0 if image.mode == "F" else 65535.0
    if not 0 <= low <= high <= top:
        reason = f"values from {low:g} to {high:g} where 0 to {top:g} are understood; convert it to 8 bits"
        raise ImageError(name, reason)
    grey = np.rint(values * (255.0 / top)).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        grey[values == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _from_array(array: NDArray[Any]) -> Image.Image:
    name = f"array {array.shape} {array.dtype}"
    if array.ndim not in (2, 3) or 0 in array.shape or (array.ndim == 3 and array.shape[2] != 3):
        raise ImageError(name, "an array (H, W, 3) or (H, W) is wanted")
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not 0 <= low <= high <= 1:
            raise ImageError(name, f"values from {low:g} to {high:g} where float arrays hold 0 to 1")
        array = np.rint(array * 255.0).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(name, "uint8 or float in [0, 1] is wanted")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _too_large(pixels: int, max_pixels: int) -> str:
    cap = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels))
    return f"too large: {pixels:,} pixels, more than the {cap:,} that are decoded; scale it down first"


def _resized(image: Image.Image, spec: PixelSpec) -> Image.Image:
    """Resize with Pillow: squashed to the size, or by the shorter side and cut."""
    wanted, cut = _placed(image.size, spec)
    image = shrink(image, spec)
    return image if cut == (0, 0, *wanted) else image.crop(cut)


def _placed(size: tuple[int, int], spec: PixelSpec) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the (width, height) that a picture is resized to, and the left, top, right, bottom of what is cut out."""
    height, width = spec.size
    wanted = width, height
    if spec.shorter_side is not None:
        short, long = sorted(size)
        sides = spec.shorter_side, int(spec.shorter_side * long / short)
        wanted = sides if size[0] <= size[1] else sides[::-1]
    # rounding as transformers does: down where the picture is larger, up where black is added around it
    left, top = (wanted[0] - width) // 2, (wanted[1] - height) // 2
    return wanted, (left, top, left + width, top + height)


def _bilinear(pixels: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    low, high, weight = _taps(pixels.shape[0], height)
    rows = pixels[low] * (1 - weight)[:, None, None] + pixels[high] * weight[:, None, None]
    low, high, weight = _taps(pixels.shape[1], width)
    return (rows[:, low] * (1 - weight)[:, None] + rows[:, high] * weight[:, None]).astype(np.float32, copy=False)


def _taps(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    centres = (np.arange(new) + 0.5) * (old / new) - 0.5
    low = np.floor(centres)
    indices = [np.clip(low + step, 0, old - 1).astype(np.int64) for step in (0, 1)]
    return indices[0], indices[1], (centres - low).astype(np.float32)
