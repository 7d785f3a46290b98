"""What a run says of itself while it works and at its end. Open `observer.py` first."""
