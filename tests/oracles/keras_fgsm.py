"""FGSM as the exercise has it, in Keras on TensorFlow: cross-entropy of a softmax, `GradientTape`, sign, clip.

python -m tests.oracles.keras_fgsm MODEL.h5 IMAGE.npy 11,14,12,8 minus-one-one OUT.npz, in a process of its own, for its
backend is TensorFlow. IMAGE is float32 in [0, 1] (h, w, 3); the labels are the true class and the targets. OUT has
`before`, probabilities (classes,), and `gradient/I`, `images/I` and `after/I` for the I-th label.
"""

import os
import sys

import numpy as np

EPSILON = 0.01
SCALINGS = {"zero-one": (0.0, 1.0), "minus-one-one": (-1.0, 1.0)}


def main(model_path: str, image_path: str, labels: str, scaling: str, out: str) -> None:
    """Attacks the image with ε = 0.01 of the range that the network is fed."""
    os.environ.update(KERAS_BACKEND="tensorflow", CUDA_VISIBLE_DEVICES="", TF_CPP_MIN_LOG_LEVEL="3")
    import keras
    import tensorflow as tf

    model, (low, high) = keras.models.load_model(model_path, compile=False), SCALINGS[scaling]
    image = tf.constant(low + (high - low) * np.load(image_path)[None])
    results = {"before": model(image).numpy()[0]}
    for position, label in enumerate(map(int, labels.split(","))):
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = keras.losses.SparseCategoricalCrossentropy()(tf.constant([label]), model(image))
        gradient = tape.gradient(loss, image)
        step = EPSILON * tf.sign(gradient)
        moved = tf.clip_by_value(image - step if position else image + step, low, high)
        for name, array in (("gradient", gradient), ("images", moved), ("after", model(moved))):
            results[f"{name}/{position}"] = array.numpy()[0]
    np.savez(out, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
