"""The folder of a saved model: layout, digests, atomic writes.

Knows tensors and files, no model class. Layout: config.json (a ModelConfig), model.safetensors (every weight, encoders
included), image_encoder/ and text_encoder/ (what rebuilds them without weights), calibration.json (which answers are
weak, where it was learnt), manifest.json (SHA-256 of each file).
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from avse import files
from avse.calibration import Calibration
from avse.config import ModelConfig, parse

log = logging.getLogger(__name__)
CONFIG, WEIGHTS, STATE = "config.json", "model.safetensors", "state.pt"
IMAGE_ENCODER, TEXT_ENCODER = "image_encoder", "text_encoder"
CALIBRATION = "calibration.json"


class CheckpointError(ValueError):
    """A saved folder that is not there, not whole, or does not fit what is asked of it."""


def write_folder(
    folder: str | Path, fill: Callable[[Path], None], extra: dict[str, Any], *, force: bool = True
) -> None:
    """Write a folder as a whole or not at all: `fill` writes into a temporary one, which then takes the name.

    Args:
        folder: where it shall lie.
        fill: writes the files into the folder that it is given.
        extra: further entries of the manifest.
        force: replace a folder of this name.

    Raises:
        FileExistsError: the name is taken and `force` is False.
        OSError: the disk refused; the former folder is as it was.
    """
    folder = Path(folder)
    if files.is_taken(folder) and not force:
        raise FileExistsError(f"{folder} exists; pass force=True (--force) to replace it")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    temporary.mkdir(parents=True)
    try:
        fill(temporary)
        files.write_manifest(temporary, extra)
        files.replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def recover(folder: str | Path) -> Path:
    """Return the folder, put back in place first where a crash fell between the two renames of a replacement."""
    folder, former = Path(folder), files.former_folder(folder)
    if not folder.exists() and (former / files.MANIFEST).is_file():
        os.replace(former, folder)
    return folder


def check_calibration_target(folder: str | Path, force: bool) -> None:
    """Refuse a folder that is not avse's, or that has a calibration which may not be replaced.

    Raises:
        CheckpointError: a pair of transformers, or no model folder at all.
        FileExistsError: there is a calibration and `force` is False.
    """
    folder = recover(folder)
    if not (folder / files.MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} is no model folder of avse, so a calibration cannot be kept in it; a pair of transformers "
            "becomes one by AVSE.from_dual_encoder(FOLDER).save_pretrained(OTHER)"
        )
    if CALIBRATION in files.verify_manifest(folder)["files"] and not force:
        raise FileExistsError(f"{folder} has a {CALIBRATION} already; pass force=True (--force) to replace it")


def read_calibration(folder: Path) -> Calibration | None:
    """Read a model folder's calibration; one that this version cannot read is a warning, and the model has none."""
    try:
        return Calibration.from_dict(json.loads((folder / CALIBRATION).read_text("utf-8")))
    except (ValueError, RecursionError) as error:
        log.warning(
            "%s: %s; answers are not marked as weak. avse evaluate %s DATA --split val --calibrate --force learns anew",
            folder / CALIBRATION,
            error,
            folder,
        )
        return None


def keep_calibration(folder: str | Path, values: dict[str, Any], *, force: bool = False) -> None:
    """Put a calibration into a saved model's folder; nothing else of it changes.

    Killed at any moment, the folder is whole, with the new calibration or without any: a file that the manifest does
    not list is none of the folder's.

    Raises:
        CheckpointError, FileExistsError: as in `check_calibration_target`.
        OSError: the disk refused.
    """
    check_calibration_target(folder, force)
    folder = Path(folder)
    manifest = files.verify_manifest(folder)
    if manifest["files"].pop(CALIBRATION, None):
        files.put_manifest(folder, manifest)
    files.write_json(folder / CALIBRATION, values)
    path = folder / CALIBRATION
    manifest["files"][CALIBRATION] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    files.put_manifest(folder, manifest)


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as safetensors; tensors that share memory are written apart. OSError where the disk refuses."""
    apart = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(apart, path)  # puts a file in its place that nobody else may read
        path.chmod(mode)
    except SafetensorError as error:
        raise OSError(errno.EIO, f"not written: {error}", str(path)) from error


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write what `load_state` reads. OSError where the disk refuses."""
    try:
        torch.save(state, path)
    except RuntimeError as error:  # torch's own, without the system's number
        raise OSError(errno.EIO, f"not written: {str(error).splitlines()[0]}", str(path)) from error


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a damaged file is a CheckpointError."""
    try:
        return load_file(path)
    except Exception as error:  # of a header that lies about its tensors, anything
        said = " ".join(f"{error}".split())[:300]
        raise CheckpointError(f"{path}: not readable as safetensors: {said}") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read optimiser, schedule and counters: plain values and tensors, nothing that could run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: not readable as plain values and tensors: {said}") from error


def read_config(folder: Path) -> ModelConfig:
    """Read a model folder's configuration after its manifest was verified."""
    path = folder / CONFIG
    if not path.is_file():
        made = (
            "; it is an export: give the model it was made of"
            if any((folder / name).is_file() for name in ("export.json", "modules.json"))
            else ""
        )
        raise CheckpointError(
            f"{folder}: no {CONFIG}; a model folder has {CONFIG}, {WEIGHTS} and {files.MANIFEST}{made}"
        )
    try:
        config = parse(ModelConfig, json.loads(path.read_text("utf-8")))
        config.model_dump_json()  # half a character (a lone surrogate) in it could be written nowhere
        return config
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())[:600]}") from error


def load_weights(module: torch.nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Load weights strictly: missing, left-over and misshapen ones are named."""
    own = module.state_dict()
    wrong = [
        *(f"{name} is missing" for name in sorted(own.keys() - tensors.keys())),
        *(f"{name} is not the model's" for name in sorted(tensors.keys() - own.keys())),
        *(
            f"{name} has shape {tuple(tensors[name].shape)}, the model {tuple(own[name].shape)}"
            for name in sorted(own.keys() & tensors.keys())
            if own[name].shape != tensors[name].shape
        ),
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        told = "; ".join(" ".join(one.split())[:200] for one in wrong[:5]) + more
        raise CheckpointError(f"{source}: weights do not fit the configuration: {told}")
    module.load_state_dict(tensors)
