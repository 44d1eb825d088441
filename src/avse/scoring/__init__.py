"""Scores between images and texts, without any model or index."""

from avse.scoring.aeom import BlockMatches, aeom, block_matches

__all__ = ["BlockMatches", "aeom", "block_matches"]
