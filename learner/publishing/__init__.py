"""New weights out to the generators, after every step. Open `publisher.py` first."""
