"""Embedded sandboxes of Linux namespaces, without a daemon. Open `backend.py` first."""
