"""A run directory as data: episodes in an index, metrics as series, logs as tails. Nothing here knows of pages."""
