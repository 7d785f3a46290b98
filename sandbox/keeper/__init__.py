"""Holds a host's sandboxes for a run, so that they outlive the process that works in them. Open `keeper.py` first."""
