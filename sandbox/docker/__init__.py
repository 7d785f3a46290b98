"""Sandboxes as Docker containers. Open `backend.py` first."""
