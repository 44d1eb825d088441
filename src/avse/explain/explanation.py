"""What an explanation is: plain numbers, how they add up, and their form as JSON. Knows no model and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avse.images import ImageSource

if TYPE_CHECKING:
    from PIL import Image

Method = Literal["exact", "gradient"]


class Match(NamedTuple):
    """A text block and the image block that answered it best."""

    text_block: int
    image_block: int
    view: int
    """Which view of the picture the image block comes from."""
    score: float
    """A_ij, the cosine of the two blocks."""
    share: float
    """A_ij / S; 0 where S is 0. Says something only where the explanation's `in_shares` is true."""


class Word(NamedTuple):
    """A word of the sentence and what it supplied to the score."""

    word: str
    start: int
    """First character in the sentence."""
    end: int
    """One past the last."""
    score: float
    share: float
    """`score` / S, as a match's."""


@dataclass(frozen=True)
class Explanation:
    """Why a picture and a sentence score as they do: S = Σ_j max_i A_ij, split over blocks, cells and words.

    With method `exact` the parts add up: ``heats.sum() + beyond`` and ``sum of the words' scores + beside`` are both S,
    up to rounding. With `gradient` (pairs such as CLIP, whose own pooling is not linear) they need not.
    """

    text: str
    score: float
    """S."""
    matches: tuple[Match, ...]
    """One a text block, in their order."""
    grid: tuple[int, int]
    """(h, w) cells; (1, G) for regions."""
    heats: NDArray[np.float32]
    """(Q, h, w): what each cell supplied to each text block's A_ij."""
    beyond: float
    """What was supplied by no cell of the picture."""
    words: tuple[Word, ...]
    beside: float
    """What was supplied by no word: special tokens and the LayerNorm's bias."""
    frame: tuple[float, float, float, float]
    """What the encoder sees of the upright picture: x0, y0, x1, y1 as shares of its sides."""
    boxes: NDArray[np.float32] | None
    """(G, 4) of regions, x0, y0, x1, y1 as shares of the picture's sides; None for a grid."""
    method: Method
    image: ImageSource | None
    """The picture, for drawing."""

    @property
    def heat(self) -> NDArray[np.float32]:
        """(h, w): what each cell supplied to S."""
        heat: NDArray[np.float32] = self.heats.sum(axis=0)
        return heat

    @property
    def in_shares(self) -> bool:
        """Whether shares of S say something: S is above 0, and no match or word is more than twice as large."""
        parts = [match.score for match in self.matches] + [word.score for word in self.words]
        return self.score > 0 and max(map(abs, parts), default=0.0) <= 2 * self.score

    def told(self, part: float) -> str:
        """Return a part of S in percent; as it is where S is near 0 or below and percent would mislead."""
        return f"{round(100 * part / self.score)} %" if self.in_shares else f"{part:+.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the picture, as JSON can say it."""
        return {
            "text": self.text,
            "score": self.score,
            "upper": len(self.matches),
            "method": self.method,
            "matches": [match._asdict() for match in self.matches],
            "words": [word._asdict() for word in self.words],
            "grid": list(self.grid),
            "heat": self.heat.tolist(),
            "heats": self.heats.tolist(),
            "beyond": self.beyond,
            "beside": self.beside,
            "frame": list(self.frame),
            "boxes": None if self.boxes is None else self.boxes.tolist(),
        }

    def overlay(self, size: int = 640) -> Image.Image:
        """Return the picture under its heat, `size` pixels at the longer side; ValueError where there is no picture."""
        from avse.explain import drawing

        return drawing.overlay(self, size)

    def _repr_html_(self) -> str:
        """Show the overlay, the shaded words and the matches in a notebook."""
        from avse.explain import drawing

        return drawing.to_html(self)
