"""Attribute directions: differences between mean latents of images that have an attribute and of those that have not.

One pass over the images serves all attributes and all estimators. Latents are posterior means, never samples. They are
regrouped into blocks of 500 whatever the batches were, the moments of a block are taken under `vmap` over estimators,
groups and attributes, and blocks are merged by the update of Chan, Golub & LeVeque (1979), so results do not depend on
the batch size and float32 loses nothing over a million images.

An estimator is a weight of every image for every attribute. The raw one is 1. Where attributes are correlated (who
smiles has high cheekbones) its direction points along both; the balanced one weighs every image by the inverse of the
probability of its attribute given its other ones (inverse propensity, Rosenbaum & Rubin 1983), as if the attribute had
been drawn independently of them. A weight of 0 leaves an image out, as estimators on half of the images do.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool, Float, Int8, UInt8

from latentlab.parallel import LocalRows
from latentlab.statistics import with_one_thread

BLOCK = 500
CLASSIC_MOVEMENT = 0.08
CLASSIC_POSITIVES = 10_000
PROPENSITY_FLOOR = 0.02

Latents = Float[Array | np.ndarray, "n latent"]
Vectors = Float[np.ndarray, "attributes latent"]
Images = UInt8[np.ndarray, "n h w c"] | LocalRows
Batch = tuple[Images, Int8[np.ndarray, "n attributes"], Float[np.ndarray, "estimators n attributes"]]
Rule = Literal["all", "stderr", "classic"]


class Moments(NamedTuple):
    """Weighted moments of latents about a common origin; group 0 is without the attribute, group 1 with it."""

    count: Float[Array, "estimators 2 attributes"]  # type: ignore[assignment]
    weight: Float[Array, "estimators 2 attributes"]
    squared_weight: Float[Array, "estimators 2 attributes"]
    mean: Float[Array, "estimators 2 attributes latent"]
    deviations: Float[Array, "estimators 2 attributes latent"]  # Σ w (z - mean)²


@dataclass(frozen=True, eq=False)
class Directions:
    """Unit vectors in latent space, for every estimator and attribute.

    Attributes:
        names: Attributes that have both positives and negatives.
        estimators: Estimators, in the order of the first axis.
        vectors: Unit vectors from negative to positive, float32; NaN where an estimator lacks either group.
        distances: Lengths of the mean differences before they were scaled.
        n_positive: Number of images with the attribute, of those that were read until its stop.
        n_negative: Number of images without it.
        standard_error_degrees: Standard error of each direction as an angle.
        left_out: Attributes without positives or without negatives, which have no direction.
        without_orthogonal: Attributes whose direction lies in the span of the others, so that nothing is left of it
            that is orthogonal to them: their `orthogonal` is the balanced one. Where there are as many others as
            latent dimensions, that is all of them.
    """

    names: tuple[str, ...]
    estimators: tuple[str, ...]
    vectors: Float[np.ndarray, "estimators attributes latent"]
    distances: Float[np.ndarray, "estimators attributes"]
    n_positive: np.ndarray
    n_negative: np.ndarray
    standard_error_degrees: Float[np.ndarray, "estimators attributes"]
    left_out: tuple[str, ...] = ()
    without_orthogonal: tuple[str, ...] = ()

    def vector(self, name: str, estimator: str = "balanced") -> Float[np.ndarray, " latent"]:
        """Return the unit vector of an attribute.

        Raises:
            KeyError: There is no such attribute or estimator.
        """
        if name not in self.names:
            raise KeyError(f"no direction {name!r}; there are {', '.join(self.names)}")
        return self.of(estimator)[self.names.index(name)]

    def of(self, estimator: str) -> Vectors:
        """Return the vectors of an estimator, (attributes, latent).

        Raises:
            KeyError: There is no such estimator.
        """
        if estimator not in self.estimators:
            raise KeyError(f"no estimator {estimator!r}; there are {', '.join(self.estimators)}")
        return self.vectors[self.estimators.index(estimator)]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `directions.npz` holds: the balanced directions, else the first, and the others' vectors."""
        main = "balanced" if "balanced" in self.estimators else self.estimators[0]
        row = self.estimators.index(main)
        statistics = ("distances", "n_positive", "n_negative", "standard_error_degrees")
        return {
            "names": np.asarray(self.names),
            "vectors": self.vectors[row],
            **{name: getattr(self, name)[row] for name in statistics},
            **{name: self.of(name) for name in self.estimators if name != main and " half " not in name},
        }

    def with_orthogonal(self, exclusive: Bool[np.ndarray, "attributes attributes"]) -> "Directions":
        """Return these with the estimator `orthogonal`: the balanced ones made orthogonal to all others.

        Except to those of attributes that exclude each other, and where nothing is left (`without_orthogonal`). Its
        distance is what is left along it of the distance between the means.
        """
        row, vectors = self.estimators.index("balanced"), self.of("balanced")
        orthogonal, without = vectors.copy(), []
        for index, vector in enumerate(vectors):
            others = ~exclusive[index] & (np.arange(len(vectors)) != index)
            try:
                orthogonal[index] = orthogonalize(vector, vectors[others]) if others.any() else vector
            except ValueError:
                without.append(self.names[index])
        distances = self.distances[row] * np.sum(orthogonal * vectors, axis=1)
        return Directions(
            self.names,
            (*self.estimators, "orthogonal"),
            np.concatenate([self.vectors, orthogonal[None]]),
            np.concatenate([self.distances, distances[None]]),
            self.n_positive[[*range(len(self.estimators)), row]],
            self.n_negative[[*range(len(self.estimators)), row]],
            self.standard_error_degrees[[*range(len(self.estimators)), row]],
            self.left_out,
            tuple(without),
        )


def find_directions(
    encode: Callable[[Any], Latents],
    batches: Iterable[Batch],
    names: Sequence[str],
    estimators: Sequence[str] = ("raw",),
    rule: Rule = "all",
    stderr_degrees: float = 2.0,
) -> Directions:
    """Find the directions of all attributes in one pass over batches of images, their attributes and weights.

    Args:
        encode: Images 0…255, or this process's rows of them, to the posterior means of all.
        batches: Images (n, h, w, c), attributes (n, A) of +1, -1 or 0 for unknown, and weights (E, n, A); weights of
            one give the raw directions, those of `inverse_propensity_weights` the balanced ones.
        names: The A attributes.
        estimators: What the E weights are called.
        rule: When to stop reading: `all` never; `stderr` once the standard error of every direction is
            below `stderr_degrees`; `classic` for every attribute of its own, once both means together moved by
            less than 0.08, each in the last block of 500 images that had a member of its group, or at 10,000 positives.
        stderr_degrees: Threshold of `stderr`.

    Raises:
        ValueError: Attributes and weights do not have the shape of images, names and estimators.
    """
    moments: Moments | None = None
    shape = len(estimators), len(names)
    active, movement = np.ones(shape, np.float32), np.full((shape[0], 2, shape[1]), np.inf)
    for latents, attributes, weights in _regroup(encode, batches, shape):
        if moments is None:
            moments, origin = init_moments(*shape, latents.shape[1]), latents.mean(axis=0)
        before = moments
        moments = update_moments(moments, latents - origin, attributes, weights * active[:, None])
        if rule == "classic":
            movement = _follow_movement(movement, before, moments)
            active *= ~_has_stopped(movement, moments)
        elif rule == "stderr":
            active *= not bool(np.all(_standard_error_degrees(moments) < stderr_degrees))
        if not active.any():
            break
    if moments is None:
        raise ValueError("there are no images to find directions from")
    return _make_directions(moments, names, estimators)


@with_one_thread
def inverse_propensity_weights(attributes: Int8[np.ndarray, "n attributes"]) -> Float[np.ndarray, "n attributes"]:
    """Return the weight P(a) / P(a | other attributes) of every image for every attribute a, from the table alone.

    The propensity is a logistic regression on the other attributes; probabilities below 0.02 count as 0.02.
    Of the others, those are left out that go with only one value of a, such as Black_Hair for a = Blond_Hair: no
    weights make the two independent, and they would hide all others. An attribute that all images share, or none has,
    gets weights of one, and so does one with no others left.
    """
    from sklearn.linear_model import LogisticRegression

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


def orthogonalize(direction: Float[np.ndarray, " latent"], others: Vectors) -> Float[np.ndarray, " latent"]:
    """Return the unit vector of the part of a direction that is orthogonal to all others.

    The others may depend on one another: their rank is taken as `numpy.linalg.matrix_rank` takes it, in float32.

    Raises:
        ValueError: Nothing is left of it: it lies in the span of the others.
    """
    basis, sizes, _ = np.linalg.svd(np.asarray(others, np.float64).T, full_matrices=False)
    basis = basis[:, sizes > sizes.max(initial=0) * max(others.shape) * np.finfo(np.float32).eps]
    rest = direction.astype(np.float64)
    for _ in range(2):  # once more, for rounding (Kahan & Parlett: twice is enough)
        rest = rest - basis @ (basis.T @ rest)
    length = np.linalg.norm(rest)
    if length < 1e-6 * np.linalg.norm(direction):
        raise ValueError("the direction lies in the span of those it shall be orthogonal to")
    return (rest / length).astype(np.float32)


def _regroup(
    encode: Callable[[Any], Latents], batches: Iterable[Batch], shape: tuple[int, int]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield latents, attributes and weights in blocks of 500 rows; the last is filled up with unknown attributes."""
    held: list[np.ndarray] = []
    for images, attributes, weights in batches:
        estimators, count = shape
        if attributes.shape != (len(images), count) or weights.shape != (estimators, len(images), count):
            raise ValueError(
                f"{len(images)} images, {count} names and {estimators} estimators, but attributes {attributes.shape} "
                f"and weights {weights.shape}"
            )
        rows = np.asarray(encode(images)), attributes, weights.swapaxes(0, 1)
        held = [np.concatenate(parts) for parts in zip(held, rows, strict=True)] if held else list(rows)
        while len(held[0]) >= BLOCK:
            latents, attributes, weights = (part[:BLOCK] for part in held)
            yield latents, attributes, weights.swapaxes(0, 1)
            held = [part[BLOCK:] for part in held]
    if held and len(held[0]):
        missing = BLOCK - len(held[0])
        latents, attributes, weights = (np.pad(part, [(0, missing), *[(0, 0)] * (part.ndim - 1)]) for part in held)
        yield latents, attributes, weights.swapaxes(0, 1)


def init_moments(estimators: int, attributes: int, latent_dim: int) -> Moments:
    """Return the moments of no images."""
    zero, wide = jnp.zeros((estimators, 2, attributes)), jnp.zeros((estimators, 2, attributes, latent_dim))
    return Moments(zero, zero, zero, wide, wide)


@jax.jit
def update_moments(moments: Moments, latents: Latents, attributes: Array, weights: Array) -> Moments:
    """Merge the moments of a block of images, under `vmap` over estimators, groups and attributes."""

    def measure_group(members: Float[Array, " n"], weights: Float[Array, " n"]) -> Moments:
        weights = members * weights
        total = jnp.sum(weights)
        divisor = jnp.where(total > 0, total, 1)
        first = jnp.dot(weights, latents, precision="highest")
        second = jnp.dot(weights, latents**2, precision="highest")
        return Moments(
            jnp.sum(weights > 0, dtype=jnp.float32),
            total,
            jnp.sum(weights**2),
            first / divisor,
            jnp.maximum(second - first**2 / divisor, 0),
        )

    groups = jnp.stack([attributes < 0, attributes > 0]).astype(jnp.float32)
    over_attributes = jax.vmap(measure_group, in_axes=1)
    over_groups = jax.vmap(over_attributes, in_axes=(0, None))
    return _merge(moments, jax.vmap(over_groups, in_axes=(None, 0))(groups, weights))


def _merge(one: Moments, other: Moments) -> Moments:
    """Return the moments of both sets together."""
    weight = one.weight + other.weight
    share = other.weight / jnp.where(weight > 0, weight, 1)
    shift = other.mean - one.mean
    return Moments(
        one.count + other.count,
        weight,
        one.squared_weight + other.squared_weight,
        one.mean + share[..., None] * shift,
        one.deviations + other.deviations + (one.weight * share)[..., None] * shift**2,
    )


def _difference(moments: Moments) -> tuple[np.ndarray, np.ndarray]:
    """Return mean differences (E, A, latent) and their lengths, in float64."""
    mean = np.asarray(moments.mean, np.float64)
    difference = mean[:, 1] - mean[:, 0]
    return difference, np.linalg.norm(difference, axis=-1)


def _standard_error_degrees(moments: Moments) -> np.ndarray:
    """Return √(Σ of the variances of the mean difference across its own direction) / its length.

    It is infinite for empty groups. The variance of a weighted mean is Σw² / (Σw)² times the variance of the latents.
    """
    weight, squared, deviations = (
        np.asarray(part, np.float64) for part in (moments.weight, moments.squared_weight, moments.deviations)
    )
    difference, length = _difference(moments)
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = weight**2 / squared
        variance = (deviations / weight[..., None] / np.maximum(effective - 1, 0)[..., None]).sum(axis=1)
        unit = difference / length[..., None]
        error = np.sqrt((variance * (1 - unit**2)).sum(axis=-1)) / length
    return np.where(np.isnan(error), np.inf, np.degrees(error))


def _follow_movement(movement: np.ndarray, before: Moments, after: Moments) -> np.ndarray:
    """Return how far each mean moved in the last block with a member of its group, infinite before its second one."""
    counts = [np.asarray(moments.count) for moments in (before, after)]
    moved = np.linalg.norm(np.asarray(after.mean) - np.asarray(before.mean), axis=-1)
    return np.where(counts[1] > counts[0], np.where(counts[0] > 0, moved, np.inf), movement)


def _has_stopped(movement: np.ndarray, after: Moments) -> np.ndarray:
    """Return which directions have stopped: both means moved by less than 0.08 together, or 10,000 positives."""
    return (movement.sum(axis=1) < CLASSIC_MOVEMENT) | (np.asarray(after.count)[:, 1] >= CLASSIC_POSITIVES)


def _make_directions(moments: Moments, names: Sequence[str], estimators: Sequence[str]) -> Directions:
    count = np.asarray(moments.count).round().astype(np.int64)
    difference, length = _difference(moments)
    found = (count > 0).all(axis=1) & (length > 0)
    whole = np.asarray([" half " not in estimator for estimator in estimators])
    kept = found[whole].all(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        vectors = np.where(found[..., None], difference / length[..., None], np.nan)[:, kept]
    return Directions(
        tuple(name for name, keep in zip(names, kept, strict=True) if keep),
        tuple(estimators),
        vectors.astype(np.float32),
        length[:, kept],
        count[:, 1, kept],
        count[:, 0, kept],
        _standard_error_degrees(moments)[:, kept],
        tuple(name for name, keep in zip(names, kept, strict=True) if not keep),
    )
