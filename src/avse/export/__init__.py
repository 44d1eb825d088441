"""Models and indexes for other tools: ONNX, sentence-transformers, Parquet, Qdrant, the Hugging Face layout."""

from __future__ import annotations

from pathlib import Path

from avse import files


def check_folder(out: str | Path, force: bool) -> None:
    """Refuse a folder that may not be written, before the work is done.

    Raises:
        FileExistsError: it is there and not ``force``, or it has no manifest: then it is none of avse's to replace.
    """
    out = Path(out)
    if out.exists() and not (force and (out / files.MANIFEST).is_file()):
        way = "choose another name" + (" or --force" if (out / files.MANIFEST).is_file() else ", it is none of avse's")
        raise FileExistsError(f"{out} is there already: {way}")
