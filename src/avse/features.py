"""Features of frozen encoders, computed once: picture grids on disk, caption tokens in memory.

Knows encoders and pictures; no heads, no training. A cache folder holds one folder a key (encoder, precision, pixel
recipe, content of the pictures), so any change computes anew; a kill in the middle loses one batch (see rowstore).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from avse import files
from avse.data import Skip
from avse.encoders import ImageEncoder, TextEncoder
from avse.images import ImageError
from avse.lock import OwnerLock
from avse.rowstore import RowStore

Precision = Literal["auto", "fp32", "bf16"]
_SPARE = 64 << 20  # bytes of the disk that are left free


class FeatureError(ValueError):
    """Features cannot be cached as asked; the message names the values that disagree and the way out."""


@dataclass(frozen=True)
class Grids:
    """The grids of the pictures that could be read.

    Attributes:
        values: (n, num_prefix + G, W) float16, memory-mapped, read-only.
        kept: (n,) int64, the position of each row's picture among the pictures asked for.
        skipped: The pictures without a row, id and reason.
        precision: "fp32" or "bf16", how the encoder computed.
        key: Hash of encoder, precision, pixel recipe and the pictures' content.
    """

    values: NDArray[np.float16]
    kept: NDArray[np.int64]
    skipped: tuple[Skip, ...]
    precision: str
    key: str

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """Return some rows, (B, num_prefix + G, W) float32."""
        return torch.from_numpy(self.values[np.asarray(rows, np.int64)].astype(np.float32))


@dataclass(frozen=True)
class TokenFeatures:
    """The token features of m texts, each distinct one stored once, without padding.

    Attributes:
        values: (all tokens, W) float16 or float32.
        starts: (m,) int64, where a text's tokens begin.
        lengths: (m,) int64, how many they are.
        truncated: (m,) bool, texts that were cut at the encoder's max_length.
    """

    values: Tensor
    starts: Tensor
    lengths: Tensor
    truncated: Tensor

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return some texts padded to the longest: tokens (B, L, W) float32, zero at padding, and mask (B, L) int64."""
        chosen = torch.as_tensor(np.asarray(rows, np.int64))
        places = torch.arange(int(self.lengths[chosen].max()))
        mask = places < self.lengths[chosen][:, None]
        tokens = self.values[torch.where(mask, self.starts[chosen][:, None] + places, 0)].float()
        return tokens.masked_fill(~mask[..., None], 0.0), mask.long()


class FeatureCache:
    """A folder of grids."""

    def __init__(self, folder: str | Path) -> None:
        """Name the folder; nothing is made yet."""
        self.folder = Path(folder)

    def grids(
        self,
        encoder: ImageEncoder,
        image_paths: Sequence[str | Path],
        image_ids: Sequence[str],
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        workers: int = 2,
        precision: Precision = "auto",
        image_augment: bool = False,
        progress: bool = True,
    ) -> Grids:
        """Return the grids of N pictures, computing what is not there yet.

        Args:
            encoder: A frozen encoder that is sampled at its output; it is moved to ``device``.
            image_paths: N files.
            image_ids: N names, for messages and skips.
            device: Where the encoder runs.
            batch_size: Pictures a pass.
            workers: Threads that read and decode.
            precision: "auto" is bf16 autocast where the device has it, else fp32.
            image_augment: Training changes the pictures: then nothing can be cached.
            progress: Show a bar on stderr.

        Raises:
            FeatureError: Features that are not fixed, no readable picture, too little disk, values beyond float16.
            LockError: Another process is filling the same grids.
        """
        _require_fixed(encoder, "image_augment", image_augment)
        if (stage := encoder.settings.sampling_stage) != "output":
            source = encoder.settings.source
            raise FeatureError(
                f"cached grids need sampling_stage 'output', {source!r} has {stage!r}: train without cache"
            )
        if len(image_paths) != len(image_ids) or not len(image_paths):
            raise FeatureError(f"{len(image_paths)} pictures, {len(image_ids)} ids: as many of each, and at least one")
        paths, chosen = [Path(path) for path in image_paths], resolve_precision(device, precision)
        shape = encoder.num_prefix + encoder.grid[0] * encoder.grid[1], encoder.width
        with ThreadPoolExecutor(max(1, workers)) as pool:
            header = {
                "encoder": encoder.fingerprint(),
                "precision": chosen,
                "pixels": encoder.pixels.describe(),
                "pictures": hashlib.sha256(" ".join(pool.map(_content, paths)).encode()).hexdigest(),
                "count": len(paths),
                "row": shape,
            }
            key = hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()[:32]
            store = RowStore(self.folder / key, header, 2 * shape[0] * shape[1])
            if not store.verify() or store.done < len(paths):
                encode = _Encode(encoder.to(device).eval(), torch.device(device), chosen)
                store.folder.mkdir(parents=True, exist_ok=True)
                lock = OwnerLock(store.folder)
                lock.acquire()
                try:
                    with tqdm(total=len(paths), desc="encoding pictures", unit="pic", disable=not progress) as bar:
                        _fill(store, encode, paths, image_ids, pool, batch_size, bar)
                finally:
                    lock.release()
        skipped = tuple(Skip(image_ids[i], reason) for i, reason in store.skips.items())
        if not store.rows:
            first = f"{skipped[0].name}: {skipped[0].reason}"
            raise FeatureError(f"none of {len(paths)} pictures can be read; the first: {first}")
        values = np.memmap(store.data, np.float16, "r", shape=(store.rows, *shape))
        kept = np.array([i for i in range(len(paths)) if i not in store.skips], np.int64)
        return Grids(values, kept, skipped, chosen, key)


def text_tokens(
    encoder: TextEncoder,
    texts: Sequence[str],
    *,
    device: str | torch.device = "cpu",
    batch_size: int = 64,
    dtype: torch.dtype = torch.float16,
    word_augment: bool = False,
    progress: bool = True,
) -> TokenFeatures:
    """Return the token features of m texts, each distinct text encoded once, in fp32, with its like in length.

    Args:
        encoder: A frozen encoder; it is moved to ``device``.
        texts: m texts.
        device: Where the encoder runs; the features stay in main memory.
        batch_size: Texts a pass.
        dtype: float16 (half the memory) or float32.
        word_augment: Whether training changes the words; then nothing can be cached.
        progress: Show a bar on stderr.

    Raises:
        FeatureError: No text, features that are not fixed, or values beyond float16.
    """
    _require_fixed(encoder, "word_augment", word_augment)
    if not texts:
        raise FeatureError("no texts: at least one is wanted")
    distinct = sorted(dict.fromkeys(texts), key=lambda text: (len(text), text))
    parts = [distinct[i : i + batch_size] for i in range(0, len(distinct), batch_size)]
    batches = [encoder.tokenize(part) for part in parts]
    kept = [encoder.kept(batch.attention_mask) for batch in batches]
    lengths = torch.cat([mask.sum(1) for mask in kept])
    values = torch.empty(int(lengths.sum()), encoder.width, dtype=dtype)
    encoder.to(device).eval()
    first = 0
    bar = tqdm(parts, desc="encoding texts", unit="batch", disable=not progress)
    for part, batch, mask in zip(bar, batches, kept):
        with torch.inference_mode():
            tokens = encoder(batch.input_ids.to(device), batch.attention_mask.to(device)).float().cpu()
        real = tokens[mask]
        values[first : first + len(real)] = (
            torch.from_numpy(_to_half(real.numpy(), part)) if dtype == torch.float16 else real
        )
        first += len(real)
    place = {text: row for row, text in enumerate(distinct)}
    rows = torch.tensor([place[text] for text in texts])
    starts = lengths.cumsum(0) - lengths
    truncated = torch.cat([batch.truncated for batch in batches])
    return TokenFeatures(values, starts[rows], lengths[rows], truncated[rows])


def resolve_precision(device: str | torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """Return how a device computes: bf16 where it is fast (GPU, AVX-512 BF16, AMX), else fp32."""
    kind = torch.device(device).type
    able = kind == "cuda" and torch.cuda.is_bf16_supported()
    if kind == "cpu":
        able = any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    if precision == "bf16" and not able:
        raise FeatureError(f"precision 'bf16': this {kind} has no fast bf16; use 'fp32' or 'auto'")
    return "bf16" if able and precision != "fp32" else "fp32"


def _require_fixed(encoder: ImageEncoder | TextEncoder, augment: str, augmented: bool) -> None:
    source = encoder.settings.source
    if not encoder.frozen:
        raise FeatureError(
            f"cached features need a frozen encoder; {source!r} is trained: train without cache or freeze it"
        )
    if augmented:
        raise FeatureError(f"cached features of {source!r} and {augment} exclude each other: switch one of them off")


@dataclass(frozen=True)
class _Encode:
    """Pixels (B, 3, H, W) to grids (B, num_prefix + G, W) in float16."""

    encoder: ImageEncoder
    device: torch.device
    precision: str

    def __call__(self, pixels: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float16]:
        half = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with torch.inference_mode(), half:
            tokens = self.encoder(torch.from_numpy(pixels).to(self.device))
        return _to_half(tokens.float().cpu().numpy(), names)


def _fill(
    store: RowStore,
    encode: _Encode,
    paths: list[Path],
    ids: Sequence[str],
    pool: ThreadPoolExecutor,
    batch_size: int,
    bar: Any,
) -> None:
    """Append the missing rows, a step a batch; pictures are decoded one batch ahead."""
    store.verify()  # again, now that nobody else writes
    missing = (len(paths) - store.done) * store.row_bytes
    store.cut()
    if (free := shutil.disk_usage(store.folder).free - _SPARE) < missing:
        raise FeatureError(
            f"grids of {len(paths) - store.done} pictures need {missing / 2**30:.2f} GiB and {store.folder.parent} has "
            f"{max(free, 0) / 2**30:.2f} GiB to spare: give a cache folder on another disk (--cache), or fewer pictures"
        )
    bar.update(store.done)
    batches = [range(i, min(i + batch_size, len(paths))) for i in range(store.done, len(paths), batch_size)]
    ahead = [pool.submit(_load, encode.encoder, paths[i]) for batch in batches[:1] for i in batch]
    for number, batch in enumerate(batches, 1):
        loaded = {i: future.result() for i, future in zip(batch, ahead)}
        ahead = [pool.submit(_load, encode.encoder, paths[i]) for batch in batches[number : number + 1] for i in batch]
        good = {i: pixels for i, pixels in loaded.items() if not isinstance(pixels, str)}
        part = encode(np.stack(list(good.values())), [ids[i] for i in good]).tobytes() if good else b""
        store.append(len(loaded), part, {i: reason for i, reason in loaded.items() if isinstance(reason, str)})
        bar.update(len(loaded))


def _content(path: Path) -> str:
    try:
        return files.sha256(path)
    except OSError as error:
        return type(error).__name__


def _load(encoder: ImageEncoder, path: Path) -> NDArray[np.float32] | str:
    """Pixels (3, H, W), or why there are none."""
    try:
        return encoder.load_pixels(path)
    except ImageError as error:
        return error.reason


def _to_half(values: NDArray[np.float32], names: Sequence[str]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        high, more = np.abs(values).max(), len(names) - 1
        raise FeatureError(
            f"features up to {high:g} do not fit float16, in {names[0]!r} or the {more} after it: use no cache"
        )
    return half
