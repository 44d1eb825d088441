"""Pictures with captions: data sets anyone can bring, open clip art, and made scenes. Loads no torch."""

from avse.data.adapt import from_pairs
from avse.data.dataset import FeatureRows, PairDataset, Skip
from avse.data.layouts import load_dataset

__all__ = ["FeatureRows", "PairDataset", "Skip", "from_pairs", "load_dataset"]
