"""Reading data sets from where users have them.

Here belong the kinds of data a user can name in a configuration and the reading of their files. The types they
come in are in `samples`; spreading over clients is in `partition`.
"""

import numpy as np

from .samples import (
    DatasetError,
    Inputs,
    LabelledData,
    Labels,
    Shard,
    load_shard,
    numbered_classes,
    read_npz,
    save_shard,
    split_by_class,
)

__all__ = ["DatasetError", "LabelledData", "Shard", "load_digits", "load_shard", "save_shard"]

DIGITS_TEST_SHARE = 0.2
"""scikit-learn's digits have no test set of their own."""


def load_digits(seed: int = 0) -> Shard:
    """scikit-learn's 1,797 handwritten digits, 1x8x8, values 0 to 1; every fifth, class by class, is test data."""
    from sklearn.datasets import load_digits as load_sklearn_digits

    pixels, digits = load_sklearn_digits(return_X_y=True)
    inputs = (pixels.reshape(-1, 1, 8, 8) / 16.0).astype(np.float32)
    data = LabelledData(inputs, digits.astype(np.int64), numbered_classes(10))
    train, test = split_by_class(data.labels, DIGITS_TEST_SHARE, np.random.default_rng(seed))
    return Shard(data.take(train), data.take(test))
