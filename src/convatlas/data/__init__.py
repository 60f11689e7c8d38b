"""Data: where pictures come from, how they are split, augmented and put into batches."""

from convatlas.data.images import Dataset, Images
from convatlas.data.sources import Source, find

__all__ = ["Dataset", "Images", "Source", "find"]
