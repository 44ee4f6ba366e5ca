"""Experiment 2: faces, attribute directions, edits, and their scorecard."""
