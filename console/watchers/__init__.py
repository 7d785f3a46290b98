"""What goes wrong in a run, told from its metrics while it can still be mended. Open `watch.py` first."""
