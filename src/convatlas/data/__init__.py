"""Data: where pictures come from, how they are split, augmented and put into batches."""

from convatlas.data.images import Dataset, Images
from convatlas.data.sources import Cut, Source, find

__all__ = ["Cut", "Dataset", "Images", "Source", "find"]
