"""Attribute directions: differences between mean latents of images that have an attribute and of those that have not.

One pass over the images serves all attributes. Latents are posterior means, never samples. They
are regrouped into blocks of 500 whatever the batches were, the moments of a block are taken under
`vmap` over attributes, and blocks are merged by the update of Chan, Golub & LeVeque (1979), so
results do not depend on the batch size and float32 loses nothing over a million images.

The raw contrast counts every image once. Where attributes are correlated (who smiles has high
cheekbones) it points along both; the balanced contrast weighs every image by the inverse of the
probability of its attribute given its other ones (inverse propensity, Rosenbaum & Rubin 1983), as
if the attribute had been drawn independently of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int8, UInt8
from sklearn.linear_model import LogisticRegression

from runtime.mesh import Portion

BLOCK = 500
CLASSIC_MOVEMENT = 0.08
CLASSIC_POSITIVES = 10_000
PROPENSITY_FLOOR = 0.02

Latents = Float[Array | np.ndarray, "n latent"]
Vectors = Float[np.ndarray, "attributes latent"]
Images = UInt8[np.ndarray, "n h w c"] | Portion
Batch = tuple[Images, Int8[np.ndarray, "n attributes"], Float[np.ndarray, "n attributes"]]
Rule = Literal["all", "stderr", "classic"]


class Moments(NamedTuple):
    """Weighted moments of latents about a common origin; group 0 is without the attribute, group 1 with it."""

    images: Float[Array, "2 attributes"]
    weight: Float[Array, "2 attributes"]
    squared_weight: Float[Array, "2 attributes"]
    mean: Float[Array, "2 attributes latent"]
    deviations: Float[Array, "2 attributes latent"]  # Σ w (z - mean)²


@dataclass(frozen=True)
class Directions:
    """Unit vectors in latent space, one an attribute.

    Attributes:
        names: Attributes that have both positives and negatives.
        vectors: Unit vectors from negative to positive, (A, latent) float32.
        distances: Lengths of the mean differences before they were scaled.
        n_positive: Images with the attribute, as many as were read until its stop.
        n_negative: Images without it.
        standard_error_degrees: Standard error of each direction as an angle.
        left_out: Attributes without positives or without negatives, which have no direction.
    """

    names: tuple[str, ...]
    vectors: Vectors
    distances: Float[np.ndarray, " attributes"]
    n_positive: np.ndarray
    n_negative: np.ndarray
    standard_error_degrees: Float[np.ndarray, " attributes"]
    left_out: tuple[str, ...] = ()

    def vector(self, name: str) -> Float[np.ndarray, " latent"]:
        """Unit vector of the attribute `name`; KeyError where it has none."""
        if name not in self.names:
            raise KeyError(f"no direction {name!r}; there are {', '.join(self.names)}")
        return self.vectors[self.names.index(name)]

    def of(self, names: Mapping[str, str]) -> "Directions":
        """Those that are called by the keys of `names`, called by its values."""
        rows = [self.names.index(name) for name in names if name in self.names]
        return Directions(
            tuple(names[self.names[row]] for row in rows),
            self.vectors[rows],
            self.distances[rows],
            self.n_positive[rows],
            self.n_negative[rows],
            self.standard_error_degrees[rows],
            tuple(names[name] for name in names if name in self.left_out),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """What `directions.npz` holds."""
        return {
            "names": np.asarray(self.names),
            "vectors": self.vectors,
            "distances": self.distances,
            "n_positive": self.n_positive,
            "n_negative": self.n_negative,
            "standard_error_degrees": self.standard_error_degrees,
        }


def find(
    encode: Callable[[Any], Latents],
    batches: Iterable[Batch],
    names: Sequence[str],
    rule: Rule = "all",
    stderr_degrees: float = 2.0,
) -> Directions:
    """Directions of all attributes from one pass over batches of images, their attributes and their weights.

    Args:
        encode: Images 0…255, or this process's portion of them, to the posterior means of all.
        batches: Images (n, h, w, c), attributes (n, A) of +1, -1 or 0 for unknown, and weights (n, A); batches
            of ones give the raw contrast, those of `inverse_propensity_weights` the balanced one.
        names: The A attributes.
        rule: When to stop reading: `all` never; `stderr` once the standard error of every direction is
            below `stderr_degrees`; `classic` for every attribute of its own, once both means together moved by
            less than 0.08 in a block of 500 images, or at 10,000 positives.
        stderr_degrees: Threshold of `stderr`.

    Raises:
        ValueError: Attributes and weights do not have the shape of images and names.
    """
    moments: Moments | None = None
    active = np.ones(len(names), bool)
    for latents, attributes, weights in _blocks(encode, batches, len(names)):
        if moments is None:
            moments, origin = no_moments(len(names), latents.shape[1]), latents.mean(axis=0)
        before, moments = moments, updated(moments, latents - origin, attributes * active, weights)
        if rule == "classic":
            active &= ~_classic_stop(before, moments)
        elif rule == "stderr":
            active[:] = not bool(np.all(_standard_error_degrees(moments) < stderr_degrees))
        if not active.any():
            break
    if moments is None:
        raise ValueError("there are no images to find directions from")
    return _directions(moments, names)


def inverse_propensity_weights(attributes: Int8[np.ndarray, "n attributes"]) -> Float[np.ndarray, "n attributes"]:
    """Weight P(a) / P(a | other attributes) of every image for every attribute a, from the table alone.

    The propensity is a logistic regression on the other attributes; probabilities below 0.02 count as 0.02.
    Of the others, those are left out that go with only one value of a, such as Black_Hair for a = Blond_Hair: no
    weights make the two independent, and they would hide all others. An attribute that all images share, or none has,
    gets weights of one, and so does one with no others left.
    """
    weights = np.ones(attributes.shape, np.float32)
    for index in range(attributes.shape[1]):
        has = attributes[:, index] > 0
        others = attributes[:, _varying_in(attributes[has]) & _varying_in(attributes[~has])]
        if not others.size:
            continue
        propensity = LogisticRegression(C=1e3, max_iter=1000).fit(others, has).predict_proba(others)[:, 1]
        probability = np.where(has, propensity, 1 - propensity)
        weights[:, index] = np.where(has, has.mean(), 1 - has.mean()) / np.maximum(probability, PROPENSITY_FLOOR)
    return weights


def _varying_in(attributes: Int8[np.ndarray, "n attributes"]) -> Bool[np.ndarray, " attributes"]:
    has = attributes > 0
    return np.asarray(has.any(axis=0) & ~has.all(axis=0))


def orthogonal_to(direction: Float[np.ndarray, " latent"], others: Vectors) -> Float[np.ndarray, " latent"]:
    """Unit vector of the part of a direction that is orthogonal to all others.

    Raises:
        ValueError: Nothing is left of it: it lies in the span of the others.
    """
    basis, _ = np.linalg.qr(np.asarray(others, np.float64).T)
    rest = direction.astype(np.float64)
    for _ in range(2):  # once more, for rounding (Kahan & Parlett: twice is enough)
        rest = rest - basis @ (basis.T @ rest)
    length = np.linalg.norm(rest)
    if length < 1e-6 * np.linalg.norm(direction):
        raise ValueError("the direction lies in the span of those it shall be orthogonal to")
    return (rest / length).astype(np.float32)


def cosines(vectors: Vectors) -> Float[np.ndarray, "attributes attributes"]:
    """Cosine between every two directions."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit @ unit.T


def _blocks(
    encode: Callable[[Any], Latents], batches: Iterable[Batch], attribute_count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Latents, attributes and weights in blocks of 500 rows; the last is filled up with unknown attributes."""
    held: list[np.ndarray] = []
    for images, attributes, weights in batches:
        if not attributes.shape == weights.shape == (len(images), attribute_count):
            raise ValueError(
                f"{len(images)} images and {attribute_count} names, but attributes {attributes.shape} and "
                f"weights {weights.shape}"
            )
        rows = np.asarray(encode(images)), attributes, weights
        held = [np.concatenate(parts) for parts in zip(held, rows, strict=True)] if held else list(rows)
        while len(held[0]) >= BLOCK:
            latents, attributes, weights = (part[:BLOCK] for part in held)
            yield latents, attributes, weights
            held = [part[BLOCK:] for part in held]
    if held and len(held[0]):
        latents, attributes, weights = (np.pad(part, ((0, BLOCK - len(part)), (0, 0))) for part in held)
        yield latents, attributes, weights


def no_moments(attributes: int, latent_dim: int) -> Moments:
    """Moments of no images."""
    zero, wide = jnp.zeros((2, attributes)), jnp.zeros((2, attributes, latent_dim))
    return Moments(zero, zero, zero, wide, wide)


@jax.jit
def updated(moments: Moments, latents: Latents, attributes: Array, weights: Array) -> Moments:
    """Moments with those of a block of images merged in, under `vmap` over groups and attributes."""

    def of_group(members: Float[Array, " n"], weights: Float[Array, " n"]) -> Moments:
        weights = members * weights
        total = jnp.sum(weights)
        divisor = jnp.where(total > 0, total, 1)
        first = jnp.dot(weights, latents, precision="highest")
        second = jnp.dot(weights, latents**2, precision="highest")
        return Moments(
            jnp.sum(members),
            total,
            jnp.sum(weights**2),
            first / divisor,
            jnp.maximum(second - first**2 / divisor, 0),
        )

    groups = jnp.stack([attributes < 0, attributes > 0]).astype(jnp.float32)
    block = jax.vmap(jax.vmap(of_group, in_axes=1), in_axes=(0, None))(groups, weights)
    return _merged(moments, block)


def _merged(one: Moments, other: Moments) -> Moments:
    """Moments of both sets together."""
    weight = one.weight + other.weight
    share = other.weight / jnp.where(weight > 0, weight, 1)
    shift = other.mean - one.mean
    return Moments(
        one.images + other.images,
        weight,
        one.squared_weight + other.squared_weight,
        one.mean + share[..., None] * shift,
        one.deviations + other.deviations + (one.weight * share)[..., None] * shift**2,
    )


def _difference(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences (A, latent) and their lengths, in float64."""
    mean = np.asarray(moments.mean, np.float64)
    difference = mean[1] - mean[0]
    return difference, np.linalg.norm(difference, axis=1)


def _standard_error_degrees(moments: Moments) -> np.ndarray:
    """√(Σ of the variances of the mean difference across its own direction) / its length; infinite for empty groups.

    The variance of a weighted mean is Σw² / (Σw)² times the variance of the latents.
    """
    weight, squared, deviations = (
        np.asarray(part, np.float64) for part in (moments.weight, moments.squared_weight, moments.deviations)
    )
    difference, length = _difference(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = weight**2 / squared
        variance = (deviations / weight[..., None] / np.maximum(effective - 1, 0)[..., None]).sum(axis=0)
        unit = difference / length[:, None]
        error = np.sqrt((variance * (1 - unit**2)).sum(axis=1)) / length
    return np.where(np.isnan(error), np.inf, np.degrees(error))


def _classic_stop(before: Moments, after: Moments) -> np.ndarray:
    """Which attributes have stopped: both means moved by less than 0.08 together, or 10,000 positives."""
    moved = np.linalg.norm(np.asarray(after.mean) - np.asarray(before.mean), axis=-1).sum(axis=0)
    started = (np.asarray(before.images) > 0).all(axis=0)
    return (started & (moved < CLASSIC_MOVEMENT)) | (np.asarray(after.images)[1] >= CLASSIC_POSITIVES)


def _directions(moments: Moments, names: Sequence[str]) -> Directions:
    count = np.asarray(moments.images).round().astype(np.int64)
    difference, length = _difference(moments)
    kept = (count > 0).all(axis=0) & (length > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        vectors = (difference / length[:, None])[kept]
    return Directions(
        tuple(name for name, keep in zip(names, kept, strict=True) if keep),
        vectors.astype(np.float32),
        length[kept],
        count[1][kept],
        count[0][kept],
        _standard_error_degrees(moments)[kept],
        tuple(name for name, keep in zip(names, kept, strict=True) if not keep),
    )
