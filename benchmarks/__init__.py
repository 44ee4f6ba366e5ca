"""Timings of this project: side by side with others, and of its own parts."""
