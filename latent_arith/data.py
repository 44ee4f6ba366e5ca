"""Faces for the experiment, from any source, in three parts that have no image in common.

| part | synthetic | CelebA |
| --- | --- | --- |
| training: network and directions | images 0, 1, … of the seed | what the other parts leave |
| held out: edited and scored | those after them | by a permutation from the seed |
| classifier: trains the judge of the scorecard | others, drawn with correlation 0 | by the same permutation |

The classifier's synthetic faces are drawn without correlation, so that it cannot take one attribute for another.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int, Int8, Key, UInt8
from platformdirs import user_cache_path
from tqdm import tqdm

from latent_arith import celeba, faces
from latent_arith.batches import Source
from latent_arith.celeba import CelebA, Table
from latent_arith.config import LatentArithConfig
from runtime import mesh
from runtime.errors import UserError

PAINTED_AT_ONCE = 512
CLASSIFIER_FROM = 2**30  # index of the classifier's first synthetic face, beyond all others


class Part(NamedTuple):
    """Images with what is known of them; `factors` has no columns where none are known."""

    images: UInt8[np.ndarray, "n 128 128 3"]
    attributes: Int8[np.ndarray, "n attributes"]
    factors: Float[np.ndarray, "n factors"]


@dataclass(frozen=True, eq=False)
class FaceData:
    """A source of images, its table, and which rows of both serve what.

    Attributes:
        source: Pixels 0…255 by row.
        table: Ids and attributes by row.
        train: Rows that network and directions see.
        held_out: Rows that neither sees.
        classifier: Images that train the classifier.
        factors: Names of the factors that faces are painted from; none where they are not painted.
        description: Where the images are from, for `results.json`.
    """

    source: Source
    table: Table
    train: Int[np.ndarray, " train"]
    held_out: Int[np.ndarray, " held_out"]
    classifier: Part
    factors: tuple[str, ...]
    description: dict[str, Any]

    def defining(self, names: Sequence[str]) -> Bool[np.ndarray, "names factors"]:
        """Which factors an attribute is a threshold of, for each of `names`."""
        return np.asarray([[faces.FACTOR_OF[name] == factor for factor in self.factors] for name in names], bool)


def open_data(config: LatentArithConfig) -> FaceData:
    """Opens or paints the data that a configuration names, and divides it.

    Raises:
        UserError: There is no such source, it cannot be read, has too few images, or lacks the attribute `label`.
    """
    kind, _, argument = config.data.partition(":")
    cache = user_cache_path("latentlab")
    if config.data == "synthetic":
        _check_label(config, faces.ATTRIBUTES)
        return _painted(config)
    if kind == "celeba" and argument:
        source = celeba.open_celeba(Path(argument), cache, config.skip_bad)
    elif kind == "tfds" and (argument or config.data == kind):
        source = celeba.open_tfds(argument, cache, config.skip_bad)
    else:
        raise UserError(f"data source {config.data!r}: expected 'synthetic', 'celeba:DIR', 'tfds' or 'tfds:NAME'")
    _check_label(config, source.table.names)
    return _divided(source, config)


def _check_label(config: LatentArithConfig, names: Sequence[str]) -> None:
    if config.label and config.label not in names:
        near = difflib.get_close_matches(config.label, names, 3, 0.5) or names
        raise UserError(f"label is {config.label!r}, which {config.data} does not have; expected {' or '.join(near)}")


def _painted(config: LatentArithConfig) -> FaceData:
    count = config.synthetic_images + config.held_out_images
    key = jax.random.key(config.seed)
    part = paint(key, np.arange(count), config.correlation, "painting faces")
    others = CLASSIFIER_FROM + np.arange(config.classifier_images)
    classifier = paint(key, others, 0.0, "painting more for the classifier")
    return FaceData(
        part.images,
        Table(tuple(f"{config.seed}-{index:06d}" for index in range(count)), faces.ATTRIBUTES, part.attributes),
        np.arange(config.synthetic_images),
        np.arange(config.synthetic_images, count),
        classifier,
        faces.Factors._fields,
        {"source": "synthetic", "images": count, "correlation": config.correlation, "seed": config.seed},
    )


def paint(key: Key[Array, ""], indices: Int[np.ndarray, " n"], correlation: float, label: str) -> Part:
    """Synthetic faces on the host, with a progress bar."""
    batches = np.array_split(indices, -(-len(indices) // PAINTED_AT_ONCE))
    with tqdm(total=len(indices), desc=label, unit="face", disable=None) as bar:
        painted = []
        for batch in batches:
            images, attributes, factors = faces.faces(key, jnp.asarray(batch), correlation)
            images, attributes, factors = mesh.fetched((images, attributes, factors))
            painted.append((images, attributes, np.stack(factors, axis=1)))
            bar.update(len(batch))
    return Part(*(np.concatenate(parts) for parts in zip(*painted, strict=True)))


def _divided(source: CelebA, config: LatentArithConfig) -> FaceData:
    wanted = config.held_out_images + config.classifier_images
    if len(source) <= wanted:
        raise UserError(
            f"{config.data} has {len(source)} images, expected more than held_out_images + classifier_images = {wanted}"
        )
    order = np.random.default_rng(config.seed).permutation(len(source))
    classifier, held_out, train = np.split(order, [config.classifier_images, wanted])
    classifier.sort()
    attributes = source.table.values[classifier]
    return FaceData(
        source,
        source.table,
        np.sort(train),
        np.sort(held_out),
        Part(source[classifier], attributes, np.zeros((len(classifier), 0), np.float32)),
        (),
        source.describe(),
    )
