"""Why a picture and a sentence score as they do: blocks, cells and words, and the picture of it."""

from avse.explain.carry import explain, explain_features
from avse.explain.explanation import Explanation, Match, Word

__all__ = ["Explanation", "Match", "Word", "explain", "explain_features"]
