"""An index and its model: found by its folder, loaded when a query first needs it, refused if it is another.

The one late binding upwards: ``avse.start:open_model`` is looked up by name, so that opening an index stays
free of torch and the index knows a model only as an `Encoder`.
"""

from __future__ import annotations

import pkgutil
from pathlib import Path

from avse.index.contract import Encoder
from avse.index.home import Home
from avse.index.manifest import Manifest


def load_encoder(folder: str | Path) -> Encoder:
    """Open a saved model, or a pair of transformers as it is.

    Raises:
        ValueError: No such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"{folder}: no such model folder; give it as model= / --model DIR")
    encoder: Encoder = pkgutil.resolve_name("avse.start:open_model")(str(folder))
    return encoder


def check_model(place: str, manifest: Manifest, model: Encoder) -> Encoder:
    """Return ``model`` if it is the one the index at ``place`` was made with.

    Raises:
        ValueError: It is not; the message holds both fingerprints.
    """
    if model.fingerprint != manifest.fingerprint:
        raise ValueError(
            f"{place} was made with the model of fingerprint {manifest.fingerprint} (folder "
            f"{manifest.model!r:.300}), this one ({model.folder}) has {model.fingerprint}: give the former as model= / "
            "--model, or make the index anew with force=True / --force"
        )
    return model


def find_encoder(home: Home, manifest: Manifest, given: Path | None) -> Encoder:
    """Load the model of an index from the folder given, else from the one the index remembers.

    Raises:
        ValueError: No such folder, or another model in it.
    """
    folder = given or (None if manifest.model is None else home.resolve(manifest.model))
    if folder is None or not folder.is_dir():
        why = "its model was never saved" if folder is None else f"there is no model folder {str(folder)!r:.300}"
        raise ValueError(
            f"{home}: {why}: give its model as model= / --model DIR; without one only embedding= works "
            f"(fingerprint {manifest.fingerprint})"
        )
    return check_model(str(home), manifest, load_encoder(folder))
