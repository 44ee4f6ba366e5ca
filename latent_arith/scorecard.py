"""Does adding an attribute's vector do what its name says, and nothing else? Numbers from an independent classifier.

A small network, which has never seen a latent, is trained on real images to tell all attributes
and, where images are painted, the factors they were painted from. Held-out faces are moved along
every direction, decoded, and shown to it. From what it sees come the share of faces in which the
attribute appears (`reached`), how much the other attributes change (`leakage`), how far the rest of
the face moves (`identity_distance`), and, from the latents alone, how well a linear probe reads an
attribute off them (`probe_auc`). Intervals resample faces, for directions and classifier are given.

The classifier must be trained on faces whose attributes are drawn independently (`faces` with
correlation 0): one that has only seen smiles with high cheekbones takes one for the other, and would
report leakage where there is none, or hide it. Decodings of a VAE are blurred, so in training every
image is mixed with its blurred copy, by a share of its own, and made a little brighter or darker.

T targets are attributes along whose direction faces are moved, K factors by how much, n faces, A
attributes and F factors of a face that the classifier tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jaxtyping import Bool, Float, Int, Int8, Key, UInt8
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from latent_arith import edits
from latent_arith.models import rows_at_once
from latent_arith.nets import AttributeClassifier
from runtime import mesh
from vae.train import Parameters, normalize

ROWS = 500  # edited faces a device that are in memory at once
BLUR = 2.0  # standard deviation of the blurred copy, in pixels of 2 × 2
BRIGHTNESS = 0.05
RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)

Images = UInt8[np.ndarray, "n 128 128 3"]
Latents = Float[np.ndarray, "n latent"]
Attributes = Int8[np.ndarray, "n attributes"]
Probabilities = Float[np.ndarray, "targets steps n attributes"]
Predict = Callable[[Images], tuple[Float[np.ndarray, "n attributes"], Float[np.ndarray, "n factors"]]]


class Estimate(NamedTuple):
    """Numbers with the ends of their 95% intervals: percentiles over 1,000 resamples of the faces."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class MeanLeakage(NamedTuple):
    """Mean leakage of every target, (T,): over the attributes that do not exclude it, and over all others."""

    compatible: Estimate
    all_others: Estimate


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained `nets.AttributeClassifier`.

    Attributes:
        names: The A attributes.
        params: Its variables.
        factor_mean: Means of the F factors over the training images.
        factor_deviation: Their standard deviations; a factor that is constant has 0, and is predicted as it is.
    """

    names: tuple[str, ...]
    params: Parameters
    factor_mean: Float[np.ndarray, " factors"]
    factor_deviation: Float[np.ndarray, " factors"]

    def predict(self, images: Images) -> tuple[Float[np.ndarray, "n attributes"], Float[np.ndarray, "n factors"]]:
        """Probabilities of the attributes, and the factors in their own units, of pixels 0…255.

        What a picture does not show, such as the colour of glasses that are not worn, is predicted by its mean.
        """
        network = AttributeClassifier(len(self.names), len(self.factor_mean))
        predicted = partial(_predicted, network, self.params)
        probabilities, factors = mesh.in_chunks(predicted, images, rows_at_once())
        return probabilities, factors * self.factor_deviation + self.factor_mean


def train_classifier(
    key: Key[Array, ""],
    images: Images,
    attributes: Attributes,
    factors: Float[np.ndarray, "n factors"],
    names: Sequence[str],
    *,
    epochs: int = 8,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
) -> Classifier:
    """Trains on the sum of two means: cross-entropy of the attributes, squared error of the factors over variance.

    After 8 epochs on 4,000 faces painted without correlation it is right, on 2,000 others, sharp or blurred by 2
    pixels alike, in 90% on average over attributes: hair colours, glasses and hats 97 to 100%, Smiling 93%, but
    Big_Lips and Arched_Eyebrows only 68%, so that what it says of those counts for little. 12,000 faces in 4 epochs
    make it 92%, Smiling 95%.

    Args:
        key: Typed key of weights, order and augmentation.
        images: Pixels 0…255; they are held on the device.
        attributes: +1 or -1.
        factors: What the images were painted from; (n, 0) where that is unknown.
        names: The A attributes.
        epochs: Passes over the images, each in a fresh order; what does not fill a batch waits for the next.
        batch_size: Images a step, at most n.
        learning_rate: Adam's, at its highest: it rises over the first tenth of the steps and falls as a cosine to 0.

    Raises:
        ValueError: Images, attributes, factors and names do not fit together.
    """
    if not len(images) == len(attributes) == len(factors) or attributes.shape[1:] != (len(names),):
        raise ValueError(
            f"{len(images)} images and {len(names)} names, but attributes {attributes.shape} and factors "
            f"{factors.shape}"
        )
    mean, deviation = factors.mean(axis=0), factors.std(axis=0)
    labels = jnp.asarray(attributes > 0, jnp.float32)
    scaled = jnp.asarray((factors - mean) / np.where(deviation > 0, deviation, 1), jnp.float32)
    batch_size = min(batch_size, len(images))
    steps_per_epoch = len(images) // batch_size
    steps = epochs * steps_per_epoch
    schedule = optax.warmup_cosine_decay_schedule(0, learning_rate, max(1, steps // 10), steps + 1)
    optimizer, network = optax.adam(schedule), AttributeClassifier(len(names), factors.shape[1])
    init_key, order_key, noise_key = jax.random.split(key, 3)
    params = jax.jit(network.init)(init_key, jnp.zeros((1, *images.shape[1:])))
    state, examples = optimizer.init(params), (mesh.everywhere(images), labels, scaled)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: Parameters, state: optax.OptState, examples: tuple[Array, Array, Array], batch: Array, key: Array
    ) -> tuple[Parameters, optax.OptState]:
        images, labels, factors = (part[batch] for part in examples)
        pixels = _augmented(key, network.averaged(normalize(mesh.divided(images))))

        def loss(params: Parameters) -> Float[Array, ""]:
            outputs: Any = network.apply(params, pixels)
            logits, predicted = outputs
            cross_entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, labels))
            return cross_entropy + jnp.sum((predicted - factors) ** 2) / max(1, factors.size)

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    for index in range(steps):
        epoch, position = divmod(index, steps_per_epoch)
        if not position:
            order = jax.random.permutation(jax.random.fold_in(order_key, epoch), len(images))
        batch = order[position * batch_size : (position + 1) * batch_size]
        params, state = step(params, state, examples, batch, jax.random.fold_in(noise_key, index))
    return Classifier(tuple(names), jax.device_get(params), *(part.astype(np.float32) for part in (mean, deviation)))


def dose_response(
    predict: Predict,
    decode: Callable[[Latents], Images],
    latents: Latents,
    vectors: Float[np.ndarray, "targets latent"],
    factors: Float[np.ndarray, " steps"],
) -> tuple[Probabilities, Float[np.ndarray, "targets steps n factors"]]:
    """What `predict` sees in decode(z + factor · vector) for every target, factor and face, float32.

    At most 500 decoded faces a device are in memory at once.
    """
    moved = [edits.along(latents, vector[None], factors[:, None]).swapaxes(0, 1) for vector in vectors]
    rows = np.concatenate(moved).reshape(-1, latents.shape[1])
    at_once = ROWS * mesh.devices()
    seen = [predict(decode(rows[start : start + at_once])) for start in range(0, len(rows), at_once)]
    joined = [np.concatenate(parts).astype(np.float32) for parts in zip(*seen, strict=True)]
    probabilities, predicted = (
        part.reshape(len(vectors), len(factors), len(latents), part.shape[1]) for part in joined
    )
    return probabilities, predicted


def accuracy(
    probabilities: Float[np.ndarray, "n attributes"], attributes: Attributes
) -> Float[np.ndarray, " attributes"]:
    """Share of images for which p ≥ 0.5 says what the table says."""
    return np.mean((probabilities >= 0.5) == (attributes > 0), axis=0)


def reached(probabilities: Probabilities, targets: Int[np.ndarray, " targets"], seed: int = 0) -> Estimate:
    """Share of the faces in which the classifier finds the target, p ≥ 0.5, at every factor, (T, K).

    Args:
        probabilities: From `dose_response`.
        targets: Column of every target among the attributes.
        seed: Of the resampling.
    """
    found = np.stack([probabilities[row, :, :, column] >= 0.5 for row, column in enumerate(targets)])
    return _estimate(np.moveaxis(found, 2, 0), lambda means: means, seed)


def changes(
    probabilities: Probabilities, factors: Float[np.ndarray, " steps"], factor: float
) -> Float[np.ndarray, "n targets attributes"]:
    """100 (p(factor) - p(0)) of every face, in percentage points; p(0) is the decoding that was not edited.

    Raises:
        ValueError: 0 or `factor` is not among the factors.
    """
    before, after = (probabilities[:, _step(factors, value)] for value in (0.0, factor))
    return 100 * (after - before).swapaxes(0, 1)


def leakage(changes: Float[np.ndarray, "n targets attributes"], seed: int = 0) -> Estimate:
    """Mean change of every attribute over the faces, (T, A), in percentage points; of the target itself, the gain."""
    return _estimate(changes, lambda means: means, seed)


def mean_leakage(
    changes: Float[np.ndarray, "n targets attributes"],
    targets: Int[np.ndarray, " targets"],
    exclusive: Bool[np.ndarray, "targets attributes"],
    seed: int = 0,
) -> MeanLeakage:
    """(1 / |S|) Σ_{a ∈ S} |mean over faces of the change of a| for every target, in percentage points.

    S are the attributes other than the target, once without those that exclude it by definition (more Blond_Hair is
    less Black_Hair, which is no fault of the direction), and once all of them, so that it can be seen what leaving
    out does. Where S is empty, the mean is 0. An absolute value cannot be negative, so noise alone gives some leakage,
    about 0.8 standard errors of the mean, and the interval of a small leakage begins above 0.

    Args:
        changes: From `changes`.
        targets: Column of every target among the attributes.
        exclusive: Pairs that are left out of the first mean: the rows `targets` of `exclusive_pairs`.
        seed: Of the resampling.
    """
    others = np.arange(changes.shape[2]) != np.asarray(targets)[:, None]

    def over(kept: np.ndarray) -> Estimate:
        share = kept / np.maximum(kept.sum(axis=1, keepdims=True), 1)
        return _estimate(changes, lambda means: np.sum(np.abs(means) * share, axis=-1), seed)

    return MeanLeakage(over(others & ~exclusive), over(others))


def exclusive_pairs(attributes: Attributes) -> Bool[np.ndarray, "attributes attributes"]:
    """Pairs of attributes that both occur in a table but never together.

    In a small table two rare attributes may miss each other by chance: take the whole one.
    """
    has = (attributes > 0).astype(np.float64)
    together = has.T @ has
    occurs = np.diag(together) > 0
    return (together == 0) & occurs & occurs[:, None]


def identity_distance(
    values: Float[np.ndarray, "targets steps n values"],
    factors: Float[np.ndarray, " steps"],
    defining: Bool[np.ndarray, "targets values"],
    deviations: Float[np.ndarray, " values"],
    seed: int = 0,
) -> Estimate:
    """√ mean ((v(factor) - v(0)) / deviation)² over faces and over the values that do not define the target, (T, K).

    0 at factor 0; √2 is the distance between two faces drawn at random, if the values tell them apart perfectly.

    Args:
        values: The factors that `dose_response` gives; for data without any, `logits` of its probabilities.
        factors: The K steps, 0 among them.
        defining: Values that the target is made of and that are left out: the factor that it thresholds, or, of
            logits, its own and those of the attributes that exclude it. Where none are left, the distance is 0.
        deviations: Standard deviation of every value over the population.
        seed: Of the resampling.

    Raises:
        ValueError: 0 is not among the factors.
    """
    origin = _step(factors, 0.0)
    moved = (values - values[:, origin : origin + 1]) / np.where(deviations > 0, deviations, 1)
    share = ~defining / np.maximum((~defining).sum(axis=1, keepdims=True), 1)
    return _estimate(np.einsum("tknv,tv->ntk", moved**2, share), np.sqrt, seed)


def logits(probabilities: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Log-odds log(p / (1 - p)) of probabilities clipped to 1e-6…1 - 1e-6."""
    clipped = np.clip(probabilities.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def probe_auc(
    train_latents: Latents, train_attributes: Attributes, test_latents: Latents, test_attributes: Attributes
) -> list[float | None]:
    """Area under the ROC curve of a linear probe of every attribute: logistic regression on standardised latents.

    0.5 is chance and 1 perfect. None stands for an attribute that all images of either set share, or none has.
    """
    areas: list[float | None] = []
    for trained, tested in zip(train_attributes.T > 0, test_attributes.T > 0, strict=True):
        if trained.all() or tested.all() or not (trained.any() and tested.any()):
            areas.append(None)
            continue
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train_latents, trained)
        areas.append(float(roc_auc_score(tested, probe.decision_function(test_latents))))
    return areas


@partial(jax.jit, static_argnums=0)
def _predicted(network: AttributeClassifier, params: Parameters, images: Array) -> tuple[Array, Array]:
    def predicted(params: Parameters, images: Array) -> tuple[Array, Array]:
        outputs: Any = network.apply(params, normalize(images))
        return jax.nn.sigmoid(outputs[0]), outputs[1]

    return mesh.over_rows(predicted, (None, 0))(params, images)


def _augmented(key: Key[Array, ""], images: Float[Array, "batch size size 3"]) -> Float[Array, "batch size size 3"]:
    """Every image mixed with its blurred copy, by a share drawn from 0…1, and one grey level added."""
    blur_key, brightness_key = jax.random.split(key)
    position = jnp.arange(images.shape[1], dtype=jnp.float32)
    distance = position[:, None] - position[None, :]
    gaussian = jax.nn.softmax(-(distance**2) / (2 * BLUR**2), axis=1)
    blurred = jnp.einsum("ij,njkc,lk->nilc", gaussian, images, gaussian)
    share = jax.random.uniform(blur_key, (len(images), 1, 1, 1))
    brightness = BRIGHTNESS * jax.random.normal(brightness_key, (len(images), 1, 1, 1))
    return images + share * (blurred - images) + brightness


def _step(factors: Float[np.ndarray, " steps"], value: float) -> int:
    where = np.flatnonzero(np.isclose(factors, value))
    if not where.size:
        raise ValueError(f"factor {value:g} is not among {', '.join(f'{factor:g}' for factor in factors)}")
    return int(where[0])


def _estimate(per_face: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> Estimate:
    """Statistic of the means over faces, the first axis; a resample is how often every face counts."""
    n, *shape = per_face.shape
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES)
    means = (counts / n) @ per_face.reshape(n, -1).astype(np.float64)
    low, high = np.percentile(statistic(means.reshape(-1, *shape)), PERCENTILES, axis=0)
    return Estimate(statistic(per_face.mean(axis=0, dtype=np.float64)), low, high)
