"""Experiment 1: an autoencoder and a VAE on MNIST with a two-dimensional latent space."""
