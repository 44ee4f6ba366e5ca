"""FGSM with Keras on TensorFlow, as the published runs did it: its decoder, its resizing, floats throughout.

    python -m benchmarks.published_keras WEIGHTS PHOTO LABEL

Reads JSON rows of [low, high, epsilon] from standard input, and writes for each the top class and its confidence.
"""

import json
import os
import sys

os.environ["KERAS_BACKEND"] = "tensorflow"
SIZE = 224


def main(weights: str, photo: str, label: int) -> None:
    """Attack the photo with every row."""
    import keras
    import tensorflow as tf

    model = keras.applications.MobileNetV2(weights=None, classifier_activation=None)
    model.load_weights(weights)
    with open(photo, "rb") as file:
        pixels = tf.io.decode_image(file.read(), channels=3, expand_animations=False)
    unit = tf.image.resize(tf.cast(pixels, tf.float32) / 255, (SIZE, SIZE))[None]
    found = []
    for low, high, epsilon in json.load(sys.stdin):
        image = low + (high - low) * unit
        with tf.GradientTape() as tape:
            tape.watch(image)
            loss = keras.losses.sparse_categorical_crossentropy(tf.constant([label]), model(image), from_logits=True)
        moved = tf.clip_by_value(image + epsilon * tf.sign(tape.gradient(loss, image)), low, high)
        after = tf.nn.softmax(model(moved))[0].numpy()
        found.append((int(after.argmax()), float(after.max())))
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
