"""Where the weights of an encoder lie: a local folder, the hub's cache on this machine, or, when asked, the hub.

Knows names and folders; nothing of what is in the files. Without the user's word nothing is fetched, and never a pickle
or code.
"""

from __future__ import annotations

import re
from pathlib import Path

from avse.encoders.base import EncoderError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_WEIGHTS = "*.safetensors"
_WANTED = (
    _WEIGHTS,
    *("config.json", "preprocessor_config.json", "processor_config.json", "*.safetensors.index.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model"),
)


def local_folder(source: str, allow_download: bool = False) -> Path:
    """Return the folder of an encoder: `source` itself, or the hub's copy of that id on this machine.

    Args:
        source: a folder, or a hub id such as google/vit-base-patch16-224-in21k.
        allow_download: fetch what is not on this machine: configuration, safetensors, tokenizer and preprocessor.

    Raises:
        EncoderError: An id that is not on this machine, or that the hub does not give. A path that is no folder is
            returned as it is: who opens it says what is missing.
    """
    folder = Path(source)
    if folder.exists() or not _HUB_ID.fullmatch(source):
        return folder
    cached = _snapshot(source, offline=True)
    if cached is not None and (cached / "config.json").is_file() and any(cached.glob(_WEIGHTS)):
        return cached
    if allow_download:
        fetched = _snapshot(source, offline=False)
        if fetched is not None:
            return fetched
    raise EncoderError(
        f"{source} is no folder, and as a hub id it is not on this machine: give a local folder (config.json, "
        "model.safetensors), or --allow-download (allow_download=True) to fetch it"
    )


def _snapshot(name: str, *, offline: bool) -> Path | None:
    """Return the folder of a hub id; None where it is not in the cache and nothing may be fetched."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                name, local_files_only=offline, allow_patterns=list(_WANTED), ignore_patterns=["*/*"]
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        if offline:
            return None
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EncoderError(f"{name} could not be fetched from the hub: {first}") from error
