"""Write a data set as webdataset shards: the training pairs in tar files, the other splits beside them as they were.

The folder is a data set itself: its shards are streamed by `avse.data.shards`, ``captions.jsonl`` and ``images/`` hold
val and test under the ids they had. A shard is whole or not there, and one that is finished is not written again. Same
data, same bytes. Knows no model.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import shutil
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from avse.data.dataset import PairDataset, Skip
from avse.data.entries import read_json
from avse.data.shards import INFO
from avse.data.tars import PICTURES
from avse.files import replace_folder, sha256, sync_folder, write_json, write_text
from avse.images import ImageError, read_image

_ENOUGH = (32, 32)
"""A JPEG decoded so small is still read to its end."""


def write_shards(
    splits: Mapping[str, PairDataset],
    out: str | Path,
    *,
    samples_per_shard: int = 1000,
    force: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Write ``train`` as shards and the other splits as pictures with captions, and return the counts.

    The pictures of train are put in the order of the SHA-256 of their ids, so that every shard is a mixture. A picture
    keeps its file's bytes; formats that shards do not have become PNG. Each is decoded once: one that cannot be read is
    left out and named in ``skipped.json``. Started again after a stop, it goes on with the shards that are missing.

    Args:
        splits: Name to split, as `avse.data.layouts.load_splits` gives them.
        out: The folder to make.
        samples_per_shard: Pictures a shard, at most.
        force: Replace what is in ``out``.
        progress: Show a bar on stderr.

    Raises:
        ValueError: No training pictures, features in the place of pictures, or an ``out`` that holds the data.
        FileExistsError: ``out`` holds something else; or shards of other data or settings, and ``force`` is not set.
    """
    out = Path(out)
    train = _checked(splits, out, samples_per_shard)
    prints = {split: part.fingerprint() for split, part in splits.items()}
    info = _begin(out, {"samples_per_shard": samples_per_shard, "fingerprints": prints}, force)
    if "beside" not in info:
        info["beside"] = _write_beside(
            {split: part for split, part in splits.items() if split != "train"}, out, progress
        )
        write_json(out / INFO, info)
    done = {said["name"]: said for said in info["shards"]}
    order = sorted(range(train.num_images), key=lambda i: hashlib.sha256(train.image_ids[i].encode()).digest())
    with tqdm(total=len(order), desc="writing shards", unit="picture", disable=not progress) as bar:
        for number, first in enumerate(range(0, len(order), samples_per_shard)):
            path, rows = out / f"train-{number:06d}.tar", order[first : first + samples_per_shard]
            if path.name not in done or not path.is_file() or path.stat().st_size != done[path.name]["bytes"]:
                done[path.name] = _write_shard(train, rows, first, path)
                info["shards"] = [done[name] for name in sorted(done)]
                write_json(out / INFO, info)
            bar.update(len(rows))
    return _finish(out, info, splits)


def _checked(splits: Mapping[str, PairDataset], out: Path, samples_per_shard: int) -> PairDataset:
    """Return the split train after what cannot be written was refused."""
    if samples_per_shard < 1:
        raise ValueError(f"{samples_per_shard} samples a shard: 1 or more are wanted")
    if any(part.features for part in splits.values()):
        raise ValueError(
            "this data set has features made beforehand in the place of pictures, and shards hold pictures: train on "
            "it as it is, its features are mapped from the disk and need no memory"
        )
    if "train" not in splits or not splits["train"].num_images:
        there = ", ".join(f"{split} ({part.num_images:,} images)" for split, part in splits.items())
        raise ValueError(f"no picture in split 'train', of which shards are made; there is {there}")
    for part in splits.values():
        if part.root.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"{out} holds the pictures that are to be written ({part.root}): name another folder")
    return splits["train"]


def _begin(out: Path, settings: dict[str, Any], force: bool) -> dict[str, Any]:
    """Return what was written so far with the same settings, after a folder of something else was refused."""
    if (out / INFO).is_file():
        info = read_json(out / INFO, {"settings": dict, "shards": list})
        if info["settings"] == settings and not force:
            return info
        if not force:
            changed = " and ".join(key for key in settings if settings[key] != info["settings"].get(key))
            raise FileExistsError(
                f"{out} holds shards of other {changed}: name another --out, or replace it with --force"
            )
        shutil.rmtree(out)
    elif out.exists() and (not out.is_dir() or any(not path.name.startswith(".") for path in out.iterdir())):
        raise FileExistsError(f"{out} holds something else than shards: name another --out")
    info = {"settings": settings, "shards": []}
    write_json(out / INFO, info)
    return info


def _write_beside(splits: Mapping[str, PairDataset], out: Path, progress: bool) -> dict[str, Any]:
    """Copy the pictures of splits that are no shards and write their lines; return the counts."""
    work = out / ".images.partial"
    shutil.rmtree(work, ignore_errors=True)
    homes: dict[str, str] = {}
    lines, skipped, captions = [], [], 0
    images = [(split, part, i) for split, part in splits.items() for i in range(part.num_images)]
    for split, part, i in tqdm(images, desc="copying other splits", unit="picture", disable=not (progress and images)):
        image_id, texts = part.image_ids[i], part.captions_of(i)
        try:
            if image_id in homes:
                raise ImageError(image_id, f"in two splits: kept in {homes[image_id]!r}, not in {split!r}")
            read_image(part.image_paths[i], draft=_ENOUGH)
        except ImageError as error:
            skipped.append(asdict(Skip(image_id, error.reason)))
            continue
        (work / image_id).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(part.image_paths[i], work / image_id)
        said = {**part.records[i], "image": image_id, "captions": texts, "split": split}
        lines.append(json.dumps(said, ensure_ascii=False, default=str) + "\n")
        homes[image_id], captions = split, captions + len(texts)
    if lines:
        replace_folder(work, out / "images")
        write_text(out / "captions.jsonl", "".join(lines))
    return {"splits": dict(Counter(homes.values())), "captions": captions, "skipped": skipped}


def _write_shard(train: PairDataset, rows: Sequence[int], first: int, path: Path) -> dict[str, Any]:
    """Write one shard, whose samples are numbered from ``first`` on, and return its entry."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    count, captions, skipped = 0, 0, []
    try:
        with open(temporary, "wb") as stream:
            with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for number, row in enumerate(rows, first):
                    try:
                        suffix, picture = _picture(train.image_paths[row])
                    except ImageError as error:
                        skipped.append(asdict(Skip(train.image_ids[row], error.reason)))
                        continue
                    said = {"captions": train.captions_of(row), "id": train.image_ids[row]}
                    _add(tar, f"{number:09d}.{suffix}", picture)
                    _add(tar, f"{number:09d}.json", json.dumps(said, ensure_ascii=False).encode())
                    count, captions = count + 1, captions + len(said["captions"])
            stream.flush()
            os.fsync(stream.fileno())
        facts = {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)}
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return {"name": path.name, "count": count, "captions": captions, **facts, "skipped": skipped}


def _picture(path: Path) -> tuple[str, bytes]:
    """Return a picture's suffix and bytes as they go into a shard, after it was decoded once."""
    suffix = path.suffix.lower().removeprefix(".")
    if suffix in PICTURES:
        read_image(path, draft=_ENOUGH)
        return suffix, path.read_bytes()
    stream = io.BytesIO()
    read_image(path).save(stream, "png")
    return "png", stream.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # of no time and no owner: same data, same bytes
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _finish(out: Path, info: dict[str, Any], splits: Mapping[str, PairDataset]) -> dict[str, Any]:
    """Write what was left out and the counts, which say that all is there; return the counts."""
    shards, beside = info["shards"], info["beside"]
    skipped = [asdict(skip) for part in splits.values() for skip in part.skipped] + beside["skipped"]
    skipped += [skip for shard in shards for skip in shard["skipped"]]
    pictures = {"train": sum(shard["count"] for shard in shards), **beside["splits"]}
    if not pictures["train"]:
        raise ValueError(
            f"{out}: no picture of train can be read; the first: {skipped[0]['name']}: {skipped[0]['reason']}"
        )
    write_json(out / "skipped.json", skipped)
    info["counts"] = {
        "pictures": sum(pictures.values()),
        "captions": sum(shard["captions"] for shard in shards) + beside["captions"],
        "splits": pictures,
        "shards": len(shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "skipped": dict(Counter(Skip(**skip).kind for skip in skipped).most_common()),
    }
    write_json(out / INFO, info)
    for left in out.glob(".*.tmp"):  # of a run that was killed
        left.unlink(missing_ok=True)
    return dict(info["counts"])
