"""What a run needs on hosts that share no file system: trees of files by content (`content.py` first), brought over the
run's own sockets; and what it needs from, or leaves at, a URL (`urls.py`).
"""
