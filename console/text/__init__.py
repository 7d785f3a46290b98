"""Hostile text made inert: terminal output, diffs. Nothing here opens a file."""
