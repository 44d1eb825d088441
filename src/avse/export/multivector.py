"""A model as a folder of sentence-transformers: `MultiVectorEncoder(FOLDER, trust_remote_code=True)` loads it.

The folder names the class below, so avse must be installed where it is loaded; the model's own folder lies in it as
avse/, manifest and all. Texts are MaxSim's queries and pictures its documents: `similarity` is then AEOM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avse import checkpoint, files
from avse.export import SENTENCE, check_folder, quiet
from avse.export.graphs import ExportError
from avse.extras import needs
from avse.model import AVSE

with needs("sentence", "export to sentence-transformers"):
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modality import infer_modality
    from sentence_transformers.base.modules import InputModule
    from sentence_transformers.util import load_dir_path

FOLDER = "avse"
_CARD = """---
library_name: sentence-transformers
---
# An AVSE model for sentence-transformers

Image-text retrieval: texts are queries of {texts} vectors, pictures documents of {images}, each vector of width {width}
and length 1. Needs `pip install "avse[sentence]"`: `modules.json` names a class of avse, and sentence-transformers asks
for `trust_remote_code=True` before it imports it.

```python
from sentence_transformers import MultiVectorEncoder

model = MultiVectorEncoder("FOLDER", trust_remote_code=True)
texts = model.encode_query(["a dog on a beach"])
images = model.encode_document(["dog.jpg"])  # paths or Pillow images
scores = model.similarity(texts, images)  # (texts, images): S, from -{texts} to {texts}
```
"""


class AVSEModule(InputModule):  # type: ignore[misc]  # of a package without types
    """The one module of such a folder: sentences or pictures to unit blocks."""

    forward_kwargs: set[str] = set()

    def __init__(self, model: AVSE) -> None:
        """Take a model of pictures; ExportError for one of regions, which are no input of sentence-transformers."""
        super().__init__()
        if model.pixels is None:
            raise ExportError(
                "this model reads features made beforehand, which sentence-transformers does not pass: take --to onnx"
            )
        self.model = model.eval()
        self.tokenizer = getattr(model.text_encoder, "tokenizer", None)

    @property
    def modalities(self) -> list[str]:
        """What `encode` takes: "text" and "image"."""
        return ["text", "image"]

    @property
    def max_seq_length(self) -> int:
        """Longest sentence in tokens."""
        return self.model.text_encoder.max_length

    def get_embedding_dimension(self) -> int:
        """Return C."""
        return self.model.block_width

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, task: str | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Turn sentences into ids and mask (B, L), or pictures (paths, Pillow, arrays) into pixels (B, 3, H, W).

        Raises:
            ValueError: sentences and pictures in one call, or sentences as documents, whose MaxSim would not be AEOM.
            ImageError: a picture cannot be read.
        """
        kinds = {"image" if isinstance(one, Path) else infer_modality(one, self.modalities) for one in inputs}
        if len(kinds) > 1 or not kinds <= {"text", "image"}:
            raise ValueError(f"one call takes sentences or pictures, this one has {sorted(map(str, kinds))}")
        values = [one[kind] if isinstance(one, dict) else one for one in inputs for kind in kinds]
        if kinds == {"image"}:
            load = self.model.image_encoder.load_pixels
            return {"pixel_values": torch.from_numpy(np.stack([load(value) for value in values]))}
        if task == "document":
            raise ValueError(
                "sentences are the queries of this model and pictures its documents: use encode_query for sentences "
                "and similarity(sentences, pictures), transposed where pictures ask"
            )
        texts = [(prompt or "") + value for value in values]
        tokens = self.model.text_encoder.tokenize(texts)
        self.model.text_encoder.warn_of_cuts(texts, tokens.truncated, stacklevel=6)
        return {"input_ids": tokens.input_ids, "token_mask": tokens.attention_mask}

    def forward(self, features: dict[str, Tensor], **kwargs: Any) -> dict[str, Tensor]:
        """Add token_embeddings, the unit blocks (B, P or Q, C), and their mask: all of them count."""
        if "pixel_values" in features:
            blocks = self.model.embed_pixels(features["pixel_values"])
        else:
            blocks = self.model.embed_tokens(features["input_ids"], features["token_mask"])
        return {**features, "token_embeddings": blocks, "attention_mask": torch.ones_like(blocks[..., 0]).long()}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the model's own folder into the folder."""
        self.model.save_pretrained(Path(output_path) / FOLDER, force=True)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any) -> AVSEModule:
        """Load from a local folder, or from a hub's where `MultiVectorEncoder` was given one."""
        known = {name: kwargs[name] for name in ("token", "cache_folder", "revision", "local_files_only")}
        return cls(AVSE.from_pretrained(load_dir_path(model_name_or_path, str(Path(subfolder, FOLDER)), **known)))


def export_sentence_transformers(model: AVSE, out: str | Path, *, force: bool = False) -> dict[str, Any]:
    """Write the folder.

    Args:
        model: of pictures.
        out: where.
        force: replace an export of this kind that is there.

    Returns:
        P, Q, C and the fingerprint.

    Raises:
        ExportError: a model of regions.
        FileExistsError, ValueError: as `check_folder`.
    """
    check_folder(out, SENTENCE, force, model.folder)
    shape = {"images": model.num_image_blocks, "texts": model.num_text_blocks, "width": model.block_width}
    folder, facts, training = model.folder, model.facts, model.training
    fingerprint = model.fingerprint

    def fill(target: Path) -> None:
        with quiet():
            encoder.save(str(target), create_model_card=False)

    try:
        encoder = MultiVectorEncoder(modules=[AVSEModule(model)], similarity_fn_name="maxsim", device=str(model.device))
        checkpoint.write_folder(out, fill, {"kind": SENTENCE, "fingerprint": fingerprint}, force=force)
        files.write_text(Path(out) / "README.md", _CARD.format(**shape))  # in no manifest: people edit it
    finally:  # saving names the temporary folder as the model's own
        model.folder, model.facts = folder, facts
        model.train(training)
    return {**shape, "fingerprint": fingerprint}
