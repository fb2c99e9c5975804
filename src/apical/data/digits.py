"""The handwritten digits that come with scikit-learn: data that needs neither network nor disk."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from apical.data.data_set import ImageData
from apical.data.images import Split


def digits() -> ImageData:
    """1797 images [1, 8, 8] of ten digits; of each digit's images every fifth is for testing (1442 and 355).

    The split follows the bundled order, so that it depends on no random generator's version. Values 0 ... 16 become
    0 ... 255, rounded half up.
    """
    from sklearn.datasets import load_digits

    bundled: Any = load_digits()
    images = torch.from_numpy(((bundled.images.astype(np.int64) * 255 + 8) // 16).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(10):
        test[(labels == digit).nonzero()[4::5, 0]] = True
    train_split, test_split = (Split(images[part], labels[part]) for part in (~test, test))
    return ImageData("digits", train_split, test_split, 10, tuple(str(digit) for digit in range(10)))
