"""A page that shows a run: everything that can be looked at or tried, in one file that opens without a network."""
