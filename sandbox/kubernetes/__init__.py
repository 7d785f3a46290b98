"""Sandboxes as Kubernetes pods. Open `backend.py` first."""
