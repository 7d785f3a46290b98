"""What a run does and did, as pages, read from its directory alone. Open `web/server.py` first."""
