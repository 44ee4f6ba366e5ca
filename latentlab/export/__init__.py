"""Runs for other programs: trackers of experiments, and networks in the formats of others."""
