"""Convolutions written for each platform: pure functions of arrays that import JAX only."""
