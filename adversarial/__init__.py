"""Adversarial attacks on image classifiers: networks, attacks and what survives being saved as a picture."""
