"""Scores between images and texts, without any model or index."""

from avse.scoring.aeom import BlockMatches, aeom, block_matches
from avse.scoring.int8 import Quantised, quantise
from avse.scoring.query import scan
from avse.scoring.ranking import rank_in_folds, rank_of
from avse.scoring.topk import TopK, topk

__all__ = [
    "BlockMatches",
    "Quantised",
    "TopK",
    "aeom",
    "block_matches",
    "quantise",
    "rank_in_folds",
    "rank_of",
    "scan",
    "topk",
]
