"""Batches of images: one order, whether the images are on the device or are streamed from a source.

`shuffle_indices` gives the order alone, as places: all that a training loop needs whose images are on the device.
`stream_images` gives images in that very order, gathered in background threads a few batches ahead, from a source that
need not fit into memory. `read_in_order` passes once over the images for attribute directions. The position of each is
a number of batches that was handed out, however many were fetched ahead, so it is part of a checkpoint.

Grain (https://google-grain.readthedocs.io) fetches ahead and keeps the position. The order is our own: 32 places out of
200,000 take 0.06 ms, those of Grain's `shuffle` 0.7.
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int8, Int32, UInt8

if TYPE_CHECKING:
    from latentlab.storage.checkpoints import CheckpointableIterator

Images = UInt8[np.ndarray, "batch height width 3"]
Rows = Int[np.ndarray, " n"]
Mine = Int[np.ndarray, " mine"] | None
Labels = Int8[np.ndarray, " n"]
Weights = Float[np.ndarray, "estimators n attributes"]


@runtime_checkable
class Source(Protocol):
    """Images by index, such as a `CelebA`."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: Int[np.ndarray, " batch"], /) -> Images:
        """Pixels 0…255 of several images; called by several threads."""


def shuffle_indices(source_length: int, batch_size: int, seed: int) -> "CheckpointableIterator":
    """Places 0…`source_length` - 1 in endless shuffled passes that follow on one another, so that every batch is full.

    Raises:
        ValueError: There is nothing to shuffle, or the batch size is not positive.
    """
    return _iterator(_order(source_length, batch_size, seed), threads=0, prefetch=0)


def stream_images(
    source: Source,
    rows: Rows,
    batch_size: int,
    seed: int,
    *,
    labels: Labels | None = None,
    mine: Mine = None,
    threads: int = 2,
    prefetch: int = 4,
) -> "CheckpointableIterator":
    """Images `source[rows[place]]` for the places of `shuffle_indices(len(rows), batch_size, seed)`.

    Args:
        source: All images.
        rows: Which of them, for instance those of the training split.
        batch_size: Images in a batch.
        seed: Of the order, with the number of the pass.
        labels: One named attribute of those rows, +1 or -1; then pairs of images and labels come.
        mine: Places in a batch that are read, for instance `parallel.local_rows(batch_size)`; all, if none are named.
        threads: How many batches are gathered at a time; with 0 they are gathered when they are asked for.
        prefetch: How many batches are fetched ahead.

    Raises:
        ValueError: As `shuffle_indices`, or there are not as many labels as rows.
    """
    if labels is not None and len(labels) != len(rows):
        raise ValueError(f"{len(labels)} labels of {len(rows)} rows")

    def gather(places: np.ndarray) -> Any:
        places = places if mine is None else places[mine]
        images = source[rows[places]]
        return images if labels is None else (images, labels[places])

    return _iterator(_order(len(rows), batch_size, seed).map(gather), threads, prefetch)


def read_in_order(
    source: Source,
    rows: Rows,
    batch_size: int,
    attributes: Int8[np.ndarray, "n attributes"],
    weights: Weights,
    *,
    mine: Mine = None,
    threads: int = 2,
    prefetch: int = 4,
) -> "CheckpointableIterator":
    """One pass over rows, and their attributes and weights, as `directions.find` takes it; the last batch is the rest.

    With `mine`, places in a batch, only their images are read, but attributes and weights come of all.

    Raises:
        ValueError: There are not as many attributes or weights as rows.
    """
    import grain

    if not len(attributes) == weights.shape[1] == len(rows):
        raise ValueError(f"{len(attributes)} rows of attributes and {weights.shape[1]} of weights for {len(rows)} rows")

    def gather(start: int) -> Any:
        part = slice(start, start + batch_size)
        read = rows[part] if mine is None else rows[start + mine[start + mine < len(rows)]]
        return source[read], attributes[part], weights[:, part]

    return _iterator(grain.MapDataset.range(0, len(rows), batch_size).map(gather), threads, prefetch)


def _order(length: int, batch_size: int, seed: int) -> Any:
    """Batches of places by number of batch, as Grain's random-access data set."""
    import grain  # slow to import, and absent where only arrays on the device are trained on

    if length < 1 or batch_size < 1:
        raise ValueError(f"cannot make batches of {batch_size} out of {length} images")

    @lru_cache(maxsize=2)
    def permutation(number: int) -> Int32[np.ndarray, " length"]:
        # Sorts the raw output of PCG64, which NumPy promises to keep (NEP 19); it does not that of `permutation`.
        raw = np.random.PCG64(np.random.SeedSequence([seed, number])).random_raw(length)
        return np.argsort(raw, kind="stable").astype(np.int32)

    def batch(number: int) -> Int32[np.ndarray, " batch"]:
        passes, places = np.divmod(np.arange(batch_size) + number * batch_size, length)
        return np.concatenate([permutation(one)[places[passes == one]] for one in range(passes[0], passes[-1] + 1)])

    return grain.MapDataset.range(sys.maxsize // batch_size).map(batch)


def _iterator(batches: Any, threads: int, prefetch: int) -> Any:
    import grain

    return iter(batches.to_iter_dataset(grain.ReadOptions(min(threads, prefetch), prefetch)))
