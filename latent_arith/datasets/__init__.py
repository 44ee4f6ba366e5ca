"""Faces with attributes: synthetic ones, CelebA from its folder or TensorFlow Datasets, and batches of any source."""
