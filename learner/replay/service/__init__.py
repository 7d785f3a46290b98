"""The replay buffer as a process that others talk to. Open `server.py` first."""
