"""The command server inside a sandbox, and its client outside. Open `sandbox.py` first; `guest.c` is the server."""
