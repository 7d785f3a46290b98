"""Who speaks on a socket of the run, and whether it still may (`fence.py`)."""
