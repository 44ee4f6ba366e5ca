"""FGSM on Keras's own MobileNetV2: an attack in one `tf.function` on TensorFlow, or in one jitted call on JAX."""

from typing import Any

import keras
import numpy as np

from benchmarks import fgsm_work
from latentlab.storage.keras_weights import FLAX_TO_KERAS


def tensorflow_gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Attacks the images at once."""
    import tensorflow as tf

    model = _network()

    @tf.function
    def fgsm(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pixels = tf.cast(images, tf.float32) / 255
        with tf.GradientTape() as tape:
            tape.watch(pixels)
            logits = model(2 * pixels - 1, training=False)
            loss = tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        gradient = tape.gradient(loss, pixels)
        moved = tf.clip_by_value(pixels + fgsm_work.EPSILON * tf.sign(gradient), 0, 1)
        return tf.cast(tf.round(255 * moved), tf.uint8), tf.reduce_sum(tf.abs(gradient))

    def attack(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        moved, norm = fgsm(tf.constant(images), tf.constant(labels))
        return moved.numpy(), float(norm)

    return fgsm_work.time_attacks(attack, images, repeats)


def jax_gradient_seconds(images: np.ndarray, repeats: int) -> tuple[list[float], list[float]]:
    """Do the same on JAX, with the network as a pure function."""
    import jax
    import jax.numpy as jnp

    model = _network()
    weights = [[weight.value for weight in some] for some in (model.trainable_variables, model.non_trainable_variables)]

    @jax.jit
    def fgsm(weights: Any, images: Any, labels: Any) -> Any:
        pixels = images.astype(jnp.float32) / 255

        def loss_of(pixels: Any) -> Any:
            logits, _ = model.stateless_call(*weights, 2 * pixels - 1, training=False)
            return -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))

        gradient = jax.grad(loss_of)(pixels)
        moved = jnp.clip(pixels + fgsm_work.EPSILON * jnp.sign(gradient), 0, 1)
        return jnp.round(255 * moved).astype(jnp.uint8), jnp.sum(jnp.abs(gradient))

    return fgsm_work.time_attacks(lambda *given: jax.device_get(fgsm(weights, *given)), images, repeats)


def _network() -> keras.Model:
    shape = (fgsm_work.SIZE, fgsm_work.SIZE, 3)
    model = keras.applications.MobileNetV2(shape, weights=None, classes=fgsm_work.CLASSES, classifier_activation=None)
    arrays = {}
    for path, array in fgsm_work.variables().items():
        _, layer, variable = path.split("/")
        name = variable if layer == "predictions" else FLAX_TO_KERAS.get(variable, variable)
        arrays[layer, name] = array.swapaxes(2, 3) if layer.endswith("depthwise") and array.ndim == 4 else array
    for weight in model.weights:
        layer, name = weight.path.split("/")[-2:]
        weight.assign(arrays.pop((layer, name)))
    if arrays:
        raise ValueError(f"Keras's network has no {sorted(arrays)}")
    return model
