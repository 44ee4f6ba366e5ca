"""Faces for the experiment, from any source, in three parts that have no image in common.

| part | synthetic | others |
| --- | --- | --- |
| training: network and directions | images 0, 1, … of the seed | what the other parts leave |
| held out: edited and scored | images 2²⁹, … of the seed | by a permutation from the seed |
| classifier: trains the judge of the scorecard | others, drawn with correlation 0 | by the same permutation |

The classifier's synthetic faces are drawn without correlation, so that it cannot take one attribute for another. A new
data set is one function and its line in `DATASETS`.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int, Int8, Key, UInt8
from platformdirs import user_cache_path
from tqdm import tqdm

from latent_arith.config import LatentArithConfig
from latent_arith.datasets import celeba, synthetic_faces
from latent_arith.datasets.batches import Source
from latent_arith.datasets.celeba import CelebA, Decoding
from latent_arith.datasets.tables import OWN_TABLES, TABLES, Table
from latentlab.errors import UserError

PAINTED_AT_ONCE = 512
ENCODED_AT_ONCE = 2000
COMPONENTS = 10
"""Principal components that stand for attributes where there are none."""
HELD_OUT_FROM, CLASSIFIER_FROM = 2**29, 2**30
"""Index of the first held-out face and of the classifier's, beyond all of training."""


class LabeledFaces(NamedTuple):
    """Images with their attributes and factors; `factors` has no columns where none are known."""

    images: UInt8[np.ndarray, "n size size 3"]
    attributes: Int8[np.ndarray, "n attributes"]
    factors: Float[np.ndarray, "n factors"]


@dataclass(frozen=True, eq=False)
class FaceData:
    """A source of images, its table, and the rows of both that belong to each part.

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
    classifier: LabeledFaces
    factors: tuple[str, ...]
    description: dict[str, Any]

    @classmethod
    def from_arrays(
        cls,
        images: UInt8[np.ndarray, "n size size 3"],
        attributes: Int8[np.ndarray, "n attributes"],
        names: Sequence[str],
        config: LatentArithConfig,
        source: str = "arrays",
    ) -> "FaceData":
        """Divide own images into the three parts, as a configuration sizes them.

        Raises:
            UserError: They do not fit together, or there are too few.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise UserError(f"{source}: images are {images.dtype} {images.shape}, expected uint8 (n, size, size, 3)")
        if attributes.shape != (len(images), len(names)) or not np.isin(attributes, (-1, 1)).all():
            raise UserError(
                f"{source}: attributes are {attributes.dtype} {attributes.shape}, expected +1 or -1 of shape "
                f"({len(images)}, {len(names)})"
            )
        ids = tuple(f"{source}-{index:06d}" for index in range(len(images)))
        table = Table(ids, tuple(names), attributes.astype(np.int8))
        return cls.split(images, table, config, {"source": source, "images": len(images)})

    @classmethod
    def split(cls, source: Source, table: Table, config: LatentArithConfig, description: dict[str, Any]) -> "FaceData":
        """Divide a source into the three parts by a permutation from the seed.

        Raises:
            UserError: There are too few images.
        """
        wanted = config.held_out_images + config.classifier_images
        if len(source) <= wanted:
            raise UserError(
                f"{description['source']} has {len(source)} images, expected more than held_out_images + "
                f"classifier_images = {wanted}"
            )
        order = np.random.default_rng(config.seed).permutation(len(source))
        classifier, held_out, train = np.split(order, [config.classifier_images, wanted])
        classifier.sort()
        judged = LabeledFaces(source[classifier], table.values[classifier], np.zeros((len(classifier), 0), np.float32))
        return cls(source, table, np.sort(train), np.sort(held_out), judged, (), description)

    def label_by_components(self, encode: Callable[[Any], Float[np.ndarray, "n latent"]]) -> "FaceData":
        """Return the same images with attributes that need no labels: on which side of principal components they are.

        Components are those of the training latents, the largest first. The difference of the means of both sides
        points along the component where latents are Gaussian, so what is found for these attributes are the directions
        of GANSpace (Härkönen et al. 2020, arXiv 2004.02546).

        Args:
            encode: Pixels 0…255 to posterior means.
        """
        from sklearn.decomposition import PCA

        def encode_rows(rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n latent"]:
            parts = np.array_split(rows, max(1, -(-len(rows) // ENCODED_AT_ONCE)))
            return np.concatenate([np.asarray(encode(self.source[part])) for part in parts])

        latents = {"train": encode_rows(self.train), "held_out": encode_rows(self.held_out)}
        count = min(COMPONENTS, *latents["train"].shape)
        components = PCA(count).fit(latents["train"])
        values = np.zeros((len(self.source), count), np.int8)
        for part, rows in (("train", self.train), ("held_out", self.held_out)):
            values[rows] = np.where(components.transform(latents[part]) > 0, 1, -1)
        judged = np.where(components.transform(np.asarray(encode(self.classifier.images))) > 0, 1, -1).astype(np.int8)
        names = tuple(f"component_{index + 1}" for index in range(count))
        explained = [float(share) for share in components.explained_variance_ratio_]
        return replace(
            self,
            table=Table(self.table.ids, names, values),
            classifier=self.classifier._replace(attributes=judged),
            description={**self.description, "explained_variance": explained},
        )

    def find_defining_factors(self, names: Sequence[str]) -> Bool[np.ndarray, "names factors"]:
        """Return which factors an attribute is a threshold of, for each of `names`."""
        of = synthetic_faces.FACTOR_OF
        return np.asarray([[of[name] == factor for factor in self.factors] for name in names], bool)


OpenData = Callable[[str, LatentArithConfig], FaceData]
"""What follows the colon in `config.data`, "" if nothing does, and the settings to the data."""


def open_synthetic(argument: str, config: LatentArithConfig) -> FaceData:
    """Paint faces."""
    if argument:
        raise UserError(f"data source {config.data!r}: expected 'synthetic' alone")
    count, end = config.synthetic_images + config.held_out_images, config.synthetic_images
    key = jax.random.key(config.seed)
    indices = np.concatenate([np.arange(end), HELD_OUT_FROM + np.arange(config.held_out_images)])
    faces = paint(key, indices, config.correlation, config.size, "painting faces")
    others = CLASSIFIER_FROM + np.arange(config.classifier_images)
    classifier = paint(key, others, 0.0, config.size, "painting more for the classifier")
    ids = tuple(f"{config.seed}-{index:06d}" for index in indices)
    return FaceData(
        faces.images,
        Table(ids, synthetic_faces.ATTRIBUTES, faces.attributes),
        np.arange(end),
        np.arange(end, count),
        classifier,
        synthetic_faces.Factors._fields,
        {"source": "synthetic", "images": count, "correlation": config.correlation, "seed": config.seed},
    )


def open_celeba(argument: str, config: LatentArithConfig) -> FaceData:
    """Open CelebA's, CelebA-HQ's or LFW's folder or zip."""
    return _open_folder(argument, config, TABLES)


def open_own_folder(argument: str, config: LatentArithConfig) -> FaceData:
    """Open a folder or zip of own pictures with an attributes.csv."""
    return _open_folder(argument, config, OWN_TABLES)


def open_tfds(argument: str, config: LatentArithConfig) -> FaceData:
    """Open a data set of TensorFlow Datasets, CelebA where none is named."""
    decoding = Decoding(config.size, config.resize, config.decoder)
    return _split(celeba.open_tfds(argument, user_cache_path("latentlab"), config.skip_bad, decoding), config)


DATASETS: dict[str, OpenData] = {
    "synthetic": open_synthetic,
    "celeba": open_celeba,
    "folder": open_own_folder,
    "tfds": open_tfds,
}
"""Data sets by the name before the colon in `--data`."""


def open_data(config: LatentArithConfig) -> FaceData:
    """Open or paint the data that a configuration names, and divide it.

    Raises:
        UserError: There is no such source, it cannot be read, or has too few images.
    """
    kind, colon, argument = config.data.partition(":")
    if kind not in DATASETS or (colon and not argument):
        known = ", ".join(f"'{name}'" for name in DATASETS)
        raise UserError(
            f"data source {config.data!r}: expected one of {known}, some with an argument, as in 'celeba:DIR'"
        )
    return DATASETS[kind](argument, config)


def check_label(config: LatentArithConfig, data: FaceData) -> None:
    """Check that the data have the attribute whose direction is wanted, and images with and without it to train on.

    Raises:
        UserError: They have not, or, where no attribute is wanted, no attribute has both.
    """
    names = data.table.names
    if not names and not config.label:
        return  # principal components stand for attributes
    if not names:
        raise UserError(f"label is {config.label!r}, but {config.data} has no attributes; expected an attributes.csv")
    if config.label and config.label not in names:
        near = difflib.get_close_matches(config.label, names, 3, 0.5) or names
        raise UserError(f"label is {config.label!r}, which {config.data} does not have; expected {' or '.join(near)}")
    positives = (data.table.values[data.train] > 0).sum(axis=0)
    varying = (positives > 0) & (positives < len(data.train))
    if config.label and not varying[names.index(config.label)]:
        count = int(positives[names.index(config.label)])
        raise UserError(
            f"label is {config.label!r}, which {count} of {len(data.train)} training images have, so it has no "
            "direction; expected one that some have and some have not"
        )
    if not varying.any():
        raise UserError(
            f"{config.data}: of no attribute are there training images with and without it, so there is no direction"
        )


def paint(
    key: Key[jax.Array, ""], indices: Int[np.ndarray, " n"], correlation: float, size: int, label: str
) -> LabeledFaces:
    """Paint synthetic faces, with a progress bar."""
    batches = np.array_split(indices, -(-len(indices) // PAINTED_AT_ONCE))
    painted = []
    with tqdm(total=len(indices), desc=label, unit="face", disable=None) as bar:
        for batch in batches:
            images, attributes, factors = synthetic_faces.paint_faces(key, batch, correlation, size)
            painted.append((images, attributes, np.stack(factors, axis=1)))
            bar.update(len(batch))
    return LabeledFaces(*(np.concatenate(parts) for parts in zip(*painted, strict=True)))


def _open_folder(argument: str, config: LatentArithConfig, tables: Sequence[str]) -> FaceData:
    if not argument:
        raise UserError(f"data source {config.data!r}: expected '{config.data}:DIR' with a folder or zip of pictures")
    decoding, cache = Decoding(config.size, config.resize, config.decoder), user_cache_path("latentlab")
    return _split(celeba.open_folder(Path(argument), cache, config.skip_bad, decoding, tables), config)


def _split(source: CelebA, config: LatentArithConfig) -> FaceData:
    return FaceData.split(source, source.table, config, source.describe())
