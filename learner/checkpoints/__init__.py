"""One consistent cut of a run, written beside the training. Open `checkpoint.py` first."""
