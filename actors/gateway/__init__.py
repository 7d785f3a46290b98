"""The HTTP server through which an agent from outside gets its tokens. Open `server.py` first, then `seat.py`."""
