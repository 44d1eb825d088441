"""Pictures with captions: data sets anyone can bring, open clip art, and made scenes. Loads no torch."""

from avse.data.captions import load_dataset
from avse.data.dataset import PairDataset, Skip

__all__ = ["PairDataset", "Skip", "load_dataset"]
