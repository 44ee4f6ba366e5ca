"""Digits as files, for tests of several experiments: the format of MNIST, written apart from the reader."""

import struct
from pathlib import Path

import numpy as np

from latentlab.labeled_images import open_dataset

IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an array in the format as http://yann.lecun.com/exdb/mnist described it."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + bytes(array.ravel().tolist())


def write_packaged(directory: Path, train: int, test: int) -> None:
    """Write the first packaged digits as the four files: so many to train on, and so many held out."""
    packaged = open_dataset("packaged")
    arrays = [
        packaged.train.images[:train, ..., 0],
        packaged.train.labels[:train],
        packaged.test.images[:test, ..., 0],
        packaged.test.labels[:test],
    ]
    directory.mkdir(exist_ok=True)
    for name, array in zip(IDX_FILES, arrays, strict=True):
        (directory / name).write_bytes(idx_bytes(array))
