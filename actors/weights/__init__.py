"""New weights into a running engine, in two phases. Open `adopter.py` first."""
