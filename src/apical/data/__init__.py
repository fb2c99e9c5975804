"""Image-classification data: scikit-learn's digits, or any data set in the Hugging Face hub's layout.

Images are decoded once into uint8 arrays, one per split, which are kept on disk and checked whenever they are read.
A split gives batches: from memory where the images fit, else from the file.
"""

from apical.data.batching import DataError, batches
from apical.data.data_set import ImageData, held_out
from apical.data.images import Split
from apical.data.loading import load

__all__ = ["DataError", "ImageData", "Split", "batches", "held_out", "load"]
